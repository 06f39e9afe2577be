import type { NativeDataPlaneOptions } from "../native/binding.ts";
import { choosePaths } from "../nixl/choice.ts";
import { createLogger } from "../observability/log.ts";
import { isLoopback } from "./control_server.ts";
import type { ResolvedOptions } from "./open_options.ts";

/** Once a process: all ranks of an instance would say the same. */
const told = new Set<string>();

export interface OpenedPaths {
  readonly plane: Pick<NativeDataPlaneOptions, "sharedMemory" | "nixl">;
  /** Of this side, the cheapest first. */
  readonly names: readonly string[];
  /** "UCX instead of LIBFABRIC", or null. */
  readonly degraded: string | null;
}

/** The paths that options and environment ask for and this machine has. @throws KvError NIXL_NOT_FOUND, NIXL_UNUSABLE, NIXL_FAILED */
export async function openPaths({ backend, path, sameHost, listen }: ResolvedOptions): Promise<OpenedPaths> {
  const loopback = isLoopback(listen.host);
  const { sharedMemory, nixl, warnings, degraded } = await choosePaths({
    backend,
    path,
    sameHost,
    loopback,
    env: process.env,
  });
  for (const warning of warnings) {
    if (!told.has(warning)) createLogger({ name: "transceiver" }).warn(warning);
    told.add(warning);
  }
  const names = [...(sharedMemory ? ["shared_memory"] : []), ...(nixl === null ? [] : ["nixl_direct"])];
  if (nixl === null) return { plane: { sharedMemory }, names, degraded };
  const { library, plugin, environment } = nixl;
  return { plane: { sharedMemory, nixl: { library, plugin, environment } }, names, degraded };
}
