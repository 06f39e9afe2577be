import { callInChild } from "../native/child_call.ts";
import type { NativeNixlProbe, NativeNixlReport } from "../native/nixl_binding.ts";
import { nixlEnvironment } from "./environment.ts";
import type { NixlEnv } from "./places.ts";

/** What a library is good for and what NIXL and UCX said meanwhile, or one sentence about why it is good for nothing. */
export type NixlProbe =
  | { readonly report: NativeNixlReport; readonly said: readonly string[] }
  | { readonly why: string };

/**
 * Loads a NIXL library in a child process: loading takes 0.1 s, a trial up to 1 s. Never throws for what the library does.
 * @param env the environment that NIXL reads; what it needs beyond that is added
 * @throws KvError NATIVE_NOT_FOUND, NATIVE_BROKEN
 */
export async function probeNixl(options: NativeNixlProbe, env: NixlEnv = process.env): Promise<NixlProbe> {
  const answer = await callInChild<NativeNixlReport>({
    name: "probeNixl",
    argument: options,
    tried: options.library,
    env: { ...env, ...nixlEnvironment(env) },
  });
  return "value" in answer ? { report: answer.value, said: answer.said } : answer;
}
