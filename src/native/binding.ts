import type { NativeCudaReport } from "./cuda_binding.ts";
import type { NativeEngine, NativeModelOptions } from "./engine_binding.ts";
import type { NativeNixlProbe, NativeNixlReport } from "./nixl_binding.ts";
import type { NativeDataPlane, NativeDataPlaneOptions } from "./plane_binding.ts";

/**
 * The addon's exports, 1:1 with native/addon. Nothing here has behaviour; src/transceiver and src/worker make it idiomatic.
 * Ids (`job`, `lease`, `timer`, `peer`, `plan`, `request`) are numbers chosen by the caller unless said otherwise, < 2^53, and unique
 * among the live ones of their kind. Times are CLOCK_BOOTTIME milliseconds with a fraction (`bootTimeMs`). No function here blocks.
 */
export interface NativeBinding {
  /** Version of this mirror; the loader refuses an addon built for another. */
  readonly mirrorVersion: number;
  readonly vectorLevel: VectorLevel;
  bootTimeMs(): number;
  /**
   * Reserves the pool on a thread of its own and opens the data plane, which keeps Node alive until it has settled.
   * Throws a TypeError that names a bad argument. Rejects with an Error whose `code` is POOL_UNAVAILABLE, MEMORY_REFUSED (adopt),
   * SOCKET_DIR_REFUSED, DESCRIPTOR_TOO_LONG, NIXL_UNUSABLE, NIXL_FAILED or STAGING_UNAVAILABLE and whose message says why.
   */
  openDataPlane(
    options: NativeDataPlaneOptions,
    onCompletions: (batch: Float64Array) => void,
  ): Promise<NativeDataPlane>;
  /** Reads header and metadata of a GGUF file and its tensors off the JS thread. Rejects with `{ code, message }`, never crashes. */
  loadModel(path: string, options: NativeModelOptions): Promise<NativeEngine>;
  /**
   * Loads a libnixl_capi.so, opens plug-ins and tries a READ between two agents. The only function here that blocks, for up to some
   * seconds, and a broken library may crash it: it is for a child process (src/native/child_call.ts). Throws an Error whose `code` is
   * NIXL_UNUSABLE and whose message names the file and what is wrong with it.
   */
  probeNixl(options: NativeNixlProbe): NativeNixlReport;
  /** Whether agents of these versions are known to work together, both ways (native/paths/nixl_descriptor.h). */
  nixlVersionsPair(one: string, other: string): boolean;
  /**
   * Loads the CUDA driver, opens each GPU and loads the kernels there. Blocks for a second or more, and takes some 100 MB of a GPU while the
   * process lives: for a child process. Never throws for want of a GPU.
   */
  probeCuda(): NativeCudaReport;
}

export type VectorLevel = "avx512" | "avx2" | "neon" | "generic";

/** The `mirrorVersion` an addon must have; raised here and in native/addon/addon.cc (kMirrorVersion) with every change of it and of the files that it imports. */
export const mirrorVersion = 16;
