import type { NixlEnv } from "../nixl/places.ts";
import { type CudaFacts, cudaFacts } from "./cuda.ts";
import { type HostFacts, hostFacts } from "./host.ts";
import { tryLocally } from "./local_trial.ts";
import { type NixlFacts, nixlFacts, withoutAddon } from "./nixl.ts";
import { type PathFacts, pathFacts } from "./paths.ts";
import { examinePair, type PairFacts } from "./peers.ts";

export interface DoctorReport {
  readonly host: HostFacts;
  readonly nixl: NixlFacts;
  readonly cuda: CudaFacts;
  /** Of this machine. */
  readonly paths: readonly PathFacts[];
  /** Of two running workers, where they were named. */
  readonly pair?: PairFacts;
  /** What is broken, with a remedy each; kvt doctor exits with 1 when there is any. */
  readonly problems: readonly string[];
}

/**
 * Looks at this machine, and at two workers as a pair where they are named (`HOST:PORT`). Loads NIXL and CUDA in child processes only; takes
 * some seconds, and as many more for the pair.
 */
export async function examine(env: NixlEnv, peers?: readonly [string, string]): Promise<DoctorReport> {
  const problems: string[] = [];
  const host = hostFacts(env);
  const addon = !("why" in host.addon);
  if ("why" in host.addon) problems.push(host.addon.why);
  const { path, why } = host.socketDirectory;
  if (why !== null) {
    problems.push(
      `the socket directory ${path} can't be used: ${why}; set KVT_SOCKET_DIR to one of your own, of mode 700`,
    );
  }
  const nixl = addon ? await nixlFacts(env, problems) : withoutAddon(env);
  const cuda = await cudaFacts(env, addon, problems);
  const trial = addon ? await tryLocally(path) : null;
  // A bad socket directory is told already.
  if (trial !== null && "why" in trial && why === null) problems.push(`shared_memory does not work: ${trial.why}`);
  const local = { host, nixl, cuda, paths: pathFacts(host, nixl, cuda, trial), problems };
  if (peers === undefined) return local;
  try {
    return { ...local, pair: await examinePair(peers, env.KVT_AUTH_TOKEN, problems) };
  } catch (error) {
    problems.push(error instanceof Error ? error.message : String(error));
    return local;
  }
}
