import { KvError } from "../errors.ts";
import type { NativeDataPlaneOptions } from "../native/plane_binding.ts";
import { choosePaths } from "../nixl/choice.ts";
import { createLogger } from "../observability/log.ts";
import { isLoopback } from "./control_server.ts";
import type { OwnNixl } from "./nixl_pairing.ts";
import type { ResolvedOptions } from "./open_options.ts";

/** native/paths/nixl_staged.cc kChunkBytesMax. */
const CHUNK_BYTES = 8 << 20;

/** Once a process: all ranks of an instance would say the same. */
const told = new Set<string>();

export interface OpenedPaths {
  readonly plane: Pick<NativeDataPlaneOptions, "sharedMemory" | "nixl" | "gpu">;
  /** Of this side, the cheapest first. */
  readonly names: readonly string[];
  /** `UCX instead of LIBFABRIC: why, and what to do`, or null. */
  readonly degraded: string | null;
  readonly nixl: OwnNixl | undefined;
}

/** The paths that options and environment ask for and this machine has. @throws KvError NIXL_NOT_FOUND, NIXL_UNUSABLE, NIXL_FAILED */
export async function openPaths(options: ResolvedOptions): Promise<OpenedPaths> {
  const { backend, path, sameHost, listen, gpu } = options;
  if (gpu !== undefined) return gpuPaths(gpu, path, sameHost);
  if (path === "cuda_peer") {
    throw new KvError("INVALID_ARGUMENT", {
      what: "path cuda_peer",
      why: 'the pool lies in memory of the host: give memory "cuda:0"',
    });
  }
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
  const mapped = sharedMemory ? ["shared_memory"] : [];
  if (nixl === null) return { plane: { sharedMemory }, names: mapped, degraded, nixl: undefined };
  const { library, plugin, version, environment, direct, staged } = nixl;
  const staging = staged ? { staging: stagingOf(options) } : {};
  const names = [...mapped, ...(staged ? ["nixl_staged"] : []), ...(direct ? ["nixl_direct"] : [])];
  return {
    plane: { sharedMemory, nixl: { library, plugin, environment, direct, ...staging } },
    names,
    degraded,
    nixl: { plugin, version: version ?? "", alone: !sharedMemory },
  };
}

/** S21, S22: slots of max_tokens_in_buffer tokens; null: of what one chunk moves, as more would stay unused. */
function stagingOf({ tokensInBuffer, stagingSlots, stallMs, native }: ResolvedOptions) {
  const tokenBytes = native.groups
    .filter(({ perBlock }) => !perBlock)
    .reduce((sum, { layers, planes, heads, elementBytes }) => sum + layers.length * planes * heads * elementBytes, 0);
  const tokens = tokensInBuffer ?? Math.max(1, Math.floor(CHUNK_BYTES / Math.max(1, tokenBytes)));
  return { slots: stagingSlots, tokens, stallMs };
}

/** A pool on a GPU has one path today: kernels that read the peer's GPU of this host. */
function gpuPaths(
  gpu: NonNullable<ResolvedOptions["gpu"]>,
  path: ResolvedOptions["path"],
  sameHost: boolean,
): OpenedPaths {
  if ((path !== null && path !== "cuda_peer") || !sameHost) {
    throw new KvError("NOT_PROVIDED", {
      what: `a pool on cuda:${gpu.device} without path cuda_peer`,
      why: "pools on GPUs are moved between processes of one host only, in this version",
      remedy: 'set neither KVT_PATH nor same_host, or use memory "host"',
    });
  }
  return { plane: { sharedMemory: false, gpu }, names: ["cuda_peer"], degraded: null, nixl: undefined };
}
