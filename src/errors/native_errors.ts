import type { ErrorSpec } from "./spec.ts";

/** The addon, NIXL, pools and blocks. */
export const nativeErrors = {
  // --- native addon -----------------------------------------------------------------------------------------------------
  NATIVE_NOT_FOUND: {
    scope: "process",
    status: 500,
    message: "the native addon was not found (looked in {tried})",
    remedy: "{remedy}",
  },
  NATIVE_BROKEN: {
    scope: "process",
    status: 500,
    message: "the native addon {file} can't be loaded: {why}",
    remedy: "{remedy}",
  },
  // --- NIXL -------------------------------------------------------------------------------------------------------------
  NIXL_NOT_FOUND: {
    scope: "process",
    status: 500,
    message: "NIXL was not found; looked for libnixl_capi.so at: {tried}",
    remedy: "`kvt nixl install` brings it; or pip install nixl-cu13 (or nixl-cu12), or set KVT_NIXL_LIBRARY",
  },
  NIXL_UNUSABLE: {
    scope: "process",
    status: 500,
    message: "NIXL can't be used: {why}",
    remedy: "`kvt nixl install` brings a copy that works; KVT_NIXL_LIBRARY names one of your own",
  },
  NIXL_FAILED: {
    scope: "instance",
    status: 503,
    message: "{why}",
    remedy: "`kvt doctor` shows which plug-ins of NIXL can be loaded here, and what the others lack",
  },
  NIXL_INSTALL_FAILED: {
    scope: "process",
    status: 500,
    message: "NIXL {version} was not installed: {why}",
    remedy:
      "check that python3 has pip and reaches PyPI; `kvt nixl install --help` names the versions that are known to work",
  },
  STAGING_UNAVAILABLE: {
    scope: "process",
    status: 500,
    message: "the staging slots of path nixl_staged can't be had: {why}",
    remedy:
      "lower max_tokens_in_buffer or transfer.staging_slots, or raise the memory limit (memory.max); where RDMA registers them, the limit of " +
      "locked memory too (ulimit -l unlimited, LimitMEMLOCK=infinity)",
  },
  // --- CUDA -------------------------------------------------------------------------------------------------------------
  CUDA_UNUSABLE: {
    scope: "process",
    status: 500,
    message: "a pool can't lie on a GPU here: {why}",
    remedy: '`kvt doctor` shows what CUDA finds on this host; memory "host" needs no GPU',
  },
  CUDA_FAILED: {
    scope: "process",
    status: 500,
    message: "CUDA failed: {why}",
    remedy: "`kvt doctor` shows what CUDA finds on this host; for a pool that does not fit use fewer blocks",
  },
  // --- pool and blocks --------------------------------------------------------------------------------------------------
  OUT_OF_BLOCKS: {
    scope: "call",
    status: 429,
    message: "{wanted} blocks wanted, {free} of {total} are free",
    remedy: "retry later, or open a larger pool",
  },
  POOL_UNAVAILABLE: {
    scope: "process",
    status: 500,
    message: "a pool of {bytes} bytes can't be reserved: {why}",
    remedy: "use fewer blocks, or raise the memory limit (memory.max, /dev/shm is not used)",
  },
  MEMORY_REFUSED: {
    scope: "call",
    status: 500,
    message: "the memory can't be adopted as a pool: {why}",
    remedy: "give fd, offset and bytes of a memfd made with MFD_ALLOW_SEALING that no other transceiver uses",
  },
  SOCKET_DIR_REFUSED: {
    scope: "process",
    status: 500,
    message: "the socket directory can't be used: {why}",
    remedy: "set KVT_SOCKET_DIR to a short path of a directory that belongs to this user and has mode 0700",
  },
  DESCRIPTOR_TOO_LONG: {
    scope: "call",
    status: 500,
    message: "what a peer must know of the pool's places is too long for it: {why}",
    remedy: "lay the layers of a group out at one distance, which is told once, or keep fewer of them in one pool",
  },
} as const satisfies Record<string, ErrorSpec>;
