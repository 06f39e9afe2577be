import type { NixlEnv } from "./places.ts";

/**
 * Variables that NIXL and UCX read when they are loaded, as they have to be for us; set before the load (spec nixl.md section 8).
 * What the user has set stays, as do all other `UCX_*` and `FI_*`.
 */
export function nixlEnvironment(env: NixlEnv): Readonly<Record<string, string>> {
  const {
    // libucs would take SIGHUP for its debugger.
    UCX_DEBUG_SIGNO: signal = "0",
    // UCX would patch brk, mmap and the like under running threads, and move the heap's end to try its patches (docs/decisions).
    UCX_MEM_EVENTS: events = "n",
  } = env;
  return { UCX_DEBUG_SIGNO: signal, UCX_MEM_EVENTS: events };
}
