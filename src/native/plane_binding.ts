/**
 * One kind of bytes in a pool: `elementBytes` for each layer, plane, head and token (or block), at `bases[layer] + block * blockStride + plane *
 * planeStride + head * headStride + token * tokenStride` from the pool's start, in bytes (native/layout/geometry.h).
 */
export interface NativeGroup {
  /** 2 for K and V. */
  readonly planes: number;
  readonly heads: number;
  /** Of the model, where the pool's part begins. */
  readonly firstHead: number;
  readonly elementBytes: number;
  /** One element a block, whatever its tokens. */
  readonly perBlock: boolean;
  /** No head axis: every rank of a stage holds the same. */
  readonly replicated: boolean;
  /** Only so many last tokens of a sequence are moved; 0: all. */
  readonly window: number;
  readonly blockStride: number;
  readonly planeStride: number;
  readonly headStride: number;
  readonly tokenStride: number;
  /** Numbers of the model's layers, rising, and where each begins in block 0. */
  readonly layers: Uint32Array;
  readonly bases: Float64Array;
}

/** What a pool holds of the model's KV, and where. Both sides of a transfer count their groups in one order. */
export interface NativeLayout {
  readonly tokensPerBlock: number;
  /** Of a pool whose blocks lie one after another, a multiple of 64; 0: they don't (adopted pools only). */
  readonly blockBytes: number;
  readonly groups: readonly NativeGroup[];
}

export interface NativeRegion {
  readonly fd: number;
  /** In bytes, a multiple of the page size. */
  readonly offset: number;
  readonly bytes: number;
}

export interface NativeDataPlaneOptions {
  readonly layout: NativeLayout;
  readonly blocks: number;
  /**
   * Absent: an own sealed memfd pool, 2 MiB aligned. Else 1 to 1024 regions, which are mapped one behind the other: offsets of the layout
   * count through them, so all but the last must be whole pages. Each memfd must be sealable and not sealed against us already, unless
   * this process adopted exactly these regions before; each `fd` is duplicated, the caller keeps its own. Plain pointers can't be shared
   * with another process and are refused.
   */
  readonly adopt?: readonly NativeRegion[];
  /** Directory (0700, this uid) of the fd-exchange socket; absent: peers on this host can't map this pool. */
  readonly socketDir?: string;
  /** Peers on this host are read through a mapping of their pool; default true. */
  readonly sharedMemory?: boolean;
  /**
   * The pool lies on this GPU, as this process counts them, and only peers with a pool on a GPU of this host read it: `sharedMemory` is
   * false then, `nixl` and `adopt` absent. A transfer fills at most so many multiprocessors.
   */
  readonly gpu?: { readonly device: number; readonly multiprocessors: number };
  /** NIXL, for peers that can't be reached so. `environment` is set in this process, for good, before the library is loaded. */
  readonly nixl?: {
    /** Absolute path; tried in a child process before. */
    readonly library: string;
    readonly plugin: string;
    readonly environment: Readonly<Record<string, string>>;
    /** Peers may read the pool itself. Not with LIBFABRIC. */
    readonly direct: boolean;
    /**
     * Slots for transfers that are packed, read in one piece and unpacked: `slots` for what is sent and as many for what is received, of
     * `tokens` tokens each, at least one block. A slot that a peer keeps longer than `stallMs` is told by SLOT_STALLED.
     */
    readonly staging?: { readonly slots: number; readonly tokens: number; readonly stallMs: number };
  };
  /** 16 hex digits; peers present it at the fd exchange. */
  readonly epoch: string;
  /** KVT_CHECK: fill released blocks with a pattern and verify it when they are taken again. */
  readonly check: boolean;
}

/** "gpu": none of these, the pool lies on a GPU. */
export type PageKind = "hugetlb" | "transparent" | "normal" | "gpu";

/** A GPU or a MIG slice that holds a pool. */
export interface NativeGpu {
  /** As this process counts (CUDA_VISIBLE_DEVICES). */
  readonly device: number;
  readonly name: string;
  /** "GPU-…", the same in every process. */
  readonly uuid: string;
  /** Device pointer of the pool's first byte, in the primary context of the device; valid until close(). */
  readonly address: bigint;
}

export interface NativeDataPlane {
  /** What a peer needs to reach this pool now: opaque bytes, at most 256 KiB, carried in WELCOME. Secret: it opens the whole pool. */
  readonly descriptor: Uint8Array;
  readonly poolBytes: number;
  readonly blockBytes: number;
  /** Of its memory: huge pages that were set aside, those that the kernel gives where it can, or 4 KiB. */
  readonly pages: PageKind;
  /** Why not `hugetlb`; empty then, and on a GPU. */
  readonly whyNotHuge: string;
  /** Where the pool lies; null: in memory of the host. */
  readonly gpu: NativeGpu | null;
  /** The pool's memory as seen by this process; detached (length 0) by close(). For a JS engine and for tests; throws over 4 GiB, and on a GPU. */
  readonly memory: ArrayBuffer;
  /** The pool for the addon's own engine: a type-tagged external. Throws on a GPU. */
  readonly span: NativePoolSpan;
  /** A copy of bytes of the pool, wherever it lies. Rejects with code CUDA_FAILED. For tests and small things: it goes through one buffer. */
  readMemory(offset: number, bytes: number): Promise<Uint8Array>;
  writeMemory(offset: number, bytes: Uint8Array): Promise<void>;

  /** Over the first path that both sides have and that works, on threads of its own, <= timeoutMs. Completion REACHED, once. */
  reach(peer: number, descriptor: Uint8Array, timeoutMs: number): void;
  /** Unmaps once no job uses it. A reach that runs ends RELEASED; the id may be used again at once. */
  releasePeer(peer: number): void;
  /**
   * `connection`: file descriptor of a socket that is connected to the peer, whose end tells the data plane, without JavaScript, that the
   * peer may be gone: nothing is begun with it that might never come back. Duplicated, so null is to be said when the socket is closed: until
   * then the peer doesn't see its end. Asked for by paths over NIXL only; no-op without.
   */
  peerConnected(peer: number, connection: number | null): void;

  /**
   * Copies tokens [fromToken, toToken) of a sequence: source block table at the peer, target block table here. Tables cover the
   * sequence from token 0 (index = token / tokensPerBlock); what they say of blocks that no window reaches means nothing, and
   * a table with fewer entries than the sequence has blocks lacks the first ones. `sequenceTokens`: all
   * that the sequence will have, from whose end windows reach back. Without `replicated` groups of no head axis are left out. Completion JOB. At `deadlineMs` the job ends TIMED_OUT at once and, as at
   * cancel, its copy may still run: completion JOB_QUIET follows when no thread touches its blocks any more (I3). JOB_QUIET comes for
   * every job, once, after or with JOB; only then may the id be used again. `deadlineMs` may be Infinity. Only the model's layers
   * [firstLayer, endLayer) are read, 0 and 0xffffffff: all; less than all only over shared memory. `transfer`: the id under which the peer has granted the blocks (40 hex digits); a staged path asks by it.
   */
  post(
    job: number,
    peer: number,
    sourceBlocks: Uint32Array,
    targetBlocks: Uint32Array,
    fromToken: number,
    toToken: number,
    sequenceTokens: number,
    replicated: boolean,
    deadlineMs: number,
    firstLayer: number,
    endLayer: number,
    transfer?: string,
  ): void;
  /**
   * 64-bit XXH3 of tokens of a sequence in this pool, in canonical order whatever the block size: `ranges` holds pairs
   * [from, to) of tokens, each gives one digest; `part` is [first layer, layers, first head, heads] of the model, and 1 when groups of no head axis count, else 0. Off the JS thread. Completion DIGESTED, unless the plane closes first.
   */
  digest(digest: number, blocks: Uint32Array, ranges: Uint32Array, part: Uint32Array, sequenceTokens: number): void;
  /** The digests of one DIGESTED, 8 bytes each in the order of the ranges; none when they could not be computed; once. */
  takeDigests(digest: number): Uint8Array;
  /** The job ends CANCELLED unless it has already ended; JOB_QUIET as above. */
  cancel(job: number): void;

  /**
   * Starts a lease of `durationMs` from now, whose end is decided on the owner thread. Completion LEASE_OVER at its end. While it runs, a
   * staged path packs `blocks` (in token order) for whoever names `transfer`, 40 hex digits.
   */
  grant(lease: number, durationMs: number, transfer?: string, blocks?: Uint32Array): void;
  /** Extends those of `leases` that have not ended, to their full duration from now. Completion RENEWED for the held ones, then RENEW_END{seq}. */
  renew(seq: number, leases: Float64Array): void;
  /** Ends a lease early (DONE): no LEASE_OVER follows. Without NIXL it wakes nobody: the owner hears of it when it wakes up for something else. */
  dropLease(lease: number): void;

  /** One deadline on CLOCK_BOOTTIME; set again moves it. Completion TIMER once, unless cleared before it was written. */
  setTimer(timer: number, atMs: number): void;
  clearTimer(timer: number): void;

  /** A post comes within some 100 µs: the owner thread polls for it where a core is to spare. */
  expect(): void;
  /** From `cork` to `uncork` no call wakes the owner thread; what needs it waits until then, and one wake-up is for all. */
  cork(): void;
  uncork(): void;

  /** check mode only, synchronous: writes the pattern / answers the first block whose pattern was changed, or -1. */
  fillReleased(blocks: Uint32Array): void;
  findTouched(blocks: Uint32Array): number;

  stats(): NativeStats;
  /** null: no path over NIXL was opened. */
  nixlAgents(): NativeNixlAgents | null;
  /** Keeps Node alive / lets it exit while idle. Starts unreferenced. */
  ref(): void;
  unref(): void;
  /**
   * Ends running jobs CANCELLED and reaches RELEASED, waits for copies to be quiet, joins threads, unmaps; all completions are delivered
   * before it resolves. Keeps Node alive until then. Idempotent; later calls that ask for work throw an Error of code CLOSED.
   */
  close(): Promise<void>;
}

/** Opaque: only the addon's own engine reads it. */
export interface NativePoolSpan {
  readonly __nativePoolSpan: never;
}

/** Completions arrive in batches: records of RECORD_WORDS doubles `[kind, id, status, bytes, queuedUs, movingUs, atMs, extra, runs, pieces]`. */
export const RECORD_WORDS = 10;

export const completionKind = {
  /** id = job; status = jobStatus; atMs = clock read after the poll that saw the end (I2); extra = path (nativePath); runs, pieces copied. */
  JOB: 1,
  /** id = job: no thread touches its blocks any more. */
  JOB_QUIET: 2,
  /** id = lease; extra = seq; atMs = new end. */
  RENEWED: 4,
  /** id = seq. */
  RENEW_END: 5,
  LEASE_OVER: 6,
  TIMER: 8,
  /** id = peer; status = reachStatus; bytes = path (nativePath); extra = the peer's process id when known, else 0. */
  REACHED: 9,
  /** id = peer: its process is known dead (pidfd). */
  PEER_DEAD: 10,
  /** id = digest; movingUs = time of hashing. */
  DIGESTED: 11,
  /** id = lease: its reader keeps a staging slot longer than stallMs. */
  SLOT_STALLED: 12,
  /** `descriptor` is another one now: peers that have the old one can't reach this pool for long. */
  PATHS_RENEWED: 13,
  /**
   * id = job, right before its JOB when its bytes went over NIXL, as NIXL's telemetry has it: status = posts; bytes; queuedUs = time in calls
   * that post; movingUs = from each post to its end, summed (posts overlap); extra = NIXL descriptors.
   */
  WIRE: 14,
} as const;

export const jobStatus = { OK: 0, CANCELLED: 1, TIMED_OUT: 2, FAILED: 3, BAD_RANGE: 4, NO_PEER: 5 } as const;
export const reachStatus = {
  OK: 0,
  OTHER_HOST: 1,
  NO_SOCKET: 2,
  REFUSED: 3,
  NOT_SEALED: 4,
  MAP_FAILED: 5,
  TIMED_OUT: 6,
  BAD_DESCRIPTOR: 7,
  /** releasePeer() or close() came first. */
  RELEASED: 8,
  /** The peer offers no path that this side has. */
  NO_COMMON_PATH: 9,
  /** Its plug-in is another, or its NIXL is of a version that does not go with this one. */
  NIXL_VERSIONS: 10,
  /** NIXL does not know its metadata, or reading a few bytes of its pool failed. */
  NIXL_FAILED: 11,
} as const;
export const nativePath = { SHARED_MEMORY: 1, CUDA_PEER: 2, NIXL_DIRECT: 3, NIXL_STAGED: 4 } as const;

export interface NativeStats {
  readonly jobsPosted: number;
  readonly jobsRunning: number;
  readonly bytesMoved: number;
  readonly leasesHeld: number;
  readonly quarantinedJobs: number;
  readonly peersMapped: number;
  readonly ringHighWater: number;
}

/** The NIXL agents of one data plane (native/paths/nixl_agents.h). */
export interface NativeNixlAgents {
  /**
   * They don't come back from a call of NIXL; `bytes` of blocks stay in quarantine, as such an agent may still write them, and with them all
   * its staging slots.
   */
  readonly wedged: readonly { readonly agent: string; readonly bytes: number; readonly slotBytes: number }[];
  /** New ones in the place of such. */
  readonly replaced: number;
  /** Those that ended in good order, and what they held with them. */
  readonly retired: number;
  /** No further one is opened: nothing moves over NIXL any more. */
  readonly exhausted: boolean;
  /** Of agents that are not wedged: staging slots under reads that were given up and have not ended. */
  readonly quarantinedSlotBytes: number;
}
