import type { NixlEnv } from "./places.ts";

/**
 * Variables that NIXL and UCX read when they are loaded, as they have to be for us; set before the load (spec nixl.md section 8).
 * `UCX_*` and `FI_*` of the user pass through untouched.
 */
export function nixlEnvironment(env: NixlEnv): Readonly<Record<string, string>> {
  const { UCX_DEBUG_SIGNO: signal = "0" } = env;
  // libucs would take SIGHUP for its debugger.
  return { UCX_DEBUG_SIGNO: signal };
}
