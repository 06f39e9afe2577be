import { KvError } from "../errors.ts";
import { jobStatus, type NativeDataPlaneOptions, nativePath, reachStatus } from "../native/plane_binding.ts";
import type { ReadStatus } from "./data_plane.ts";

/** How a job of the addon ended, as a read says it. */
export const readStatusOf: Readonly<Record<number, ReadStatus>> = {
  [jobStatus.OK]: "ok",
  [jobStatus.CANCELLED]: "cancelled",
  [jobStatus.TIMED_OUT]: "timed_out",
  [jobStatus.FAILED]: "failed",
  [jobStatus.BAD_RANGE]: "bad_range",
  [jobStatus.NO_PEER]: "no_peer",
};

export const pathNameOf: Readonly<Record<number, string>> = {
  [nativePath.SHARED_MEMORY]: "shared_memory",
  [nativePath.CUDA_PEER]: "cuda_peer",
  [nativePath.NIXL_DIRECT]: "nixl_direct",
  [nativePath.NIXL_STAGED]: "nixl_staged",
};

/** Why a peer was not reached, as the end of a sentence. */
export const reachFailureOf: Readonly<Record<number, string>> = {
  [reachStatus.OTHER_HOST]:
    "it is on another host, where only NIXL leads, and at least one of the two sides has no NIXL that works",
  [reachStatus.NO_SOCKET]: "its socket for the exchange of memory is gone or not reachable from here",
  [reachStatus.REFUSED]: "its data plane refused the exchange of memory",
  [reachStatus.NOT_SEALED]: "its pool is not sealed against writing",
  [reachStatus.MAP_FAILED]:
    "its pool can't be mapped here (address space or memory limit; on a GPU, what CUDA said stands in this process's log)",
  [reachStatus.TIMED_OUT]: "mapping its pool took too long",
  [reachStatus.BAD_DESCRIPTOR]: "its descriptor is not understood",
  [reachStatus.RELEASED]: "this side is closing",
  [reachStatus.NO_COMMON_PATH]: "it has no path that this side has (see KVT_PATH and backend on both)",
  [reachStatus.NIXL_VERSIONS]:
    "its NIXL is of another plug-in or of a version that is not known to work with this one's",
  [reachStatus.NIXL_FAILED]: "NIXL got no connection to it, or could not read from it",
};

/** What copying into or out of the pool threw, as a KvError where it has a code. */
export const memoryError = (error: unknown): unknown =>
  error instanceof Error && "code" in error && error.code === "CUDA_FAILED"
    ? new KvError("CUDA_FAILED", { why: error.message }, { cause: error })
    : error;

/** What opening the data plane threw, as a KvError where it has a code. */
export function openError(error: unknown, options: NativeDataPlaneOptions): unknown {
  // An argument that only the addon can judge: where a placement ends, and whether its elements overlap.
  if (error instanceof TypeError) {
    return new KvError("INVALID_ARGUMENT", { what: "options.pool", why: error.message }, { cause: error });
  }
  if (!(error instanceof Error) || !("code" in error)) return error;
  const bytes =
    options.adopt?.reduce((sum, region) => sum + region.bytes, 0) ?? options.layout.blockBytes * options.blocks;
  const why = error.message;
  switch (error.code) {
    case "POOL_UNAVAILABLE":
      return new KvError("POOL_UNAVAILABLE", { bytes, why }, { cause: error });
    case "MEMORY_REFUSED":
    case "SOCKET_DIR_REFUSED":
    case "DESCRIPTOR_TOO_LONG":
    case "NIXL_UNUSABLE":
    case "NIXL_FAILED":
    case "STAGING_UNAVAILABLE":
    case "CUDA_UNUSABLE":
    case "CUDA_FAILED":
      return new KvError(error.code, { why }, { cause: error });
    case "INVALID_ARGUMENT":
      return new KvError("INVALID_ARGUMENT", { what: "options of the data plane", why }, { cause: error });
    default:
      return error;
  }
}
