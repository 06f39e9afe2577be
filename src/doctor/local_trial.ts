import { type ProbedPath, ProbeSource, readProbe } from "../transceiver/path_probe.ts";

/** What two pools of this process moved through shared memory, or why they could not. */
export type LocalTrial = { readonly pieces: ProbedPath["pieces"] } | { readonly why: string };

const LIMIT_MS = 30_000;

/**
 * Does what two workers of one host do: opens two pools of 32 MiB, hands the descriptor of one over a socket of the socket directory, maps it,
 * and reads it in pieces of three sizes.
 */
export async function tryLocally(socketDir: string): Promise<LocalTrial> {
  const setting = { path: "shared_memory", instance: "doctor", socketDir } as const;
  try {
    await using source = await ProbeSource.open(setting);
    const { pieces } = await readProbe(setting, source.offers, AbortSignal.timeout(LIMIT_MS));
    return { pieces };
  } catch (error) {
    return { why: error instanceof Error ? error.message : String(error) };
  }
}
