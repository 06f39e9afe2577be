import type { Clock } from "../clock.ts";
import type { BlockId, TransferId } from "../ids.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { LayerSpan } from "./read_front.ts";

/** One deadline. After `clear` it never fires. */
export interface PlaneTimer {
  clear(): void;
}

export interface PlaneLease {
  /** `over` is not told any more. */
  drop(): void;
}

export type ReadStatus = "ok" | "cancelled" | "timed_out" | "failed" | "bad_range" | "no_peer";
/** What NIXL says of its posts for one read, or summed over the reads of a transfer. */
export interface WireTelemetry {
  readonly posts: number;
  /** In calls that post, where shared memory and TCP copy. */
  readonly postMs: number;
  /** From each post to its end, summed; posts overlap. */
  readonly transferMs: number;
  /** After neighbours were merged. */
  readonly descriptors: number;
  readonly bytes: number;
}

export interface ReadEnd {
  readonly status: ReadStatus;
  readonly bytes: number;
  readonly movingMs: number;
  /** The clock after the poll that saw the end (I2). */
  readonly atMs: number;
  readonly path: string;
  /** Of the plan, and the contiguous copies in them. */
  readonly runs: number;
  readonly pieces: number;
  /** Of bytes that went over NIXL. */
  readonly wire?: WireTelemetry;
}
export interface ReadListener {
  /** Once. */
  ended(end: ReadEnd): void;
  /** Once, after `ended`: nothing touches the target blocks any more (I3). */
  quiet(): void;
}
export interface PlaneRead {
  /** It ends `cancelled` unless it has ended already; `quiet` still follows. */
  cancel(): void;
}
export interface ReadRequest {
  readonly peer: PlanePeer;
  readonly source: Uint32Array;
  readonly target: Uint32Array;
  readonly fromToken: number;
  readonly toToken: number;
  /** null: all that both sides hold. */
  readonly layers: LayerSpan | null;
  /** Of the whole sequence: windows reach back from its end. */
  readonly sequenceTokens: number;
  /** Groups without a head axis too. */
  readonly replicated: boolean;
  /** May be Infinity. */
  readonly deadlineMs: number;
  /** Under which the peer has granted the source. */
  readonly transferId: TransferId;
}

/** What a lease lets its reader have. */
export interface LeaseGrant {
  readonly transferId: TransferId;
  /** In token order. */
  readonly blocks: readonly BlockId[];
  /** The reader keeps a staging slot longer than stallMs, whatever it renews. */
  readonly stalled: () => void;
}

export interface DigestRequest {
  readonly blocks: Uint32Array;
  /** Pairs [from, to) of tokens, one for each digest. */
  readonly ranges: Uint32Array;
  /** As of a read. */
  readonly sequenceTokens: number;
  /** What of the model counts; default all that this rank holds. */
  readonly part?: RankPart | undefined;
}

export interface ReachListener {
  /** `failure` null: its blocks can be read, over that path. Once. */
  reached(failure: string | null, path: string): void;
  /** Its process is known dead; what is mapped can still be read and nobody can change it. At most once. */
  dead(): void;
}
export interface PlanePeer {
  /** The file descriptor of the socket to it, null when that has closed: what shows that it lives while this thread is busy. */
  connected(connection: number | null): void;
  /** Nothing is told afterwards; the mapping goes when no read uses it. */
  release(): void;
}

/**
 * All that the sessions need of the native data plane, in their words. NativePlane is the one implementation and the only caller of the
 * addon's jobs, leases and timers; a simulation puts another in its place.
 */
export interface DataPlane extends Clock {
  /** What a peer needs to read this pool; secret. */
  readonly descriptor: Uint8Array;
  reach(descriptor: Uint8Array, timeoutMs: number, listener: ReachListener): PlanePeer;
  /** A read is asked for soon: what it needs may stay awake for it. */
  expectRead(): void;
  read(request: ReadRequest, listener: ReadListener): PlaneRead;
  /**
   * 64-bit XXH3 of this pool's KV, 8 bytes for each range (docs/decisions/028-digests-of-moved-blocks.md). `done` is not called once the plane
   * closes, and gets none when a GPU could not compute them. Blocks that change hands meanwhile give digests that mean nothing.
   */
  digest(request: DigestRequest, done: (digests: Uint8Array) => void): void;
  /** It runs for `durationMs`, and longer when renewed, from a moment after this call; then `over`, once. */
  lease(durationMs: number, over: () => void, grant: LeaseGrant): PlaneLease;
  /** Extends those of `leases` that have not ended, in one step; `renewed` names them, once. */
  renew(leases: readonly PlaneLease[], renewed: (held: ReadonlySet<PlaneLease>) => void): void;
  timer(atMs: number, fire: () => void): PlaneTimer;
  /** Counted: Node stays alive while more `hold` than `letGo` were called. */
  hold(): void;
  letGo(): void;
  /** KVT_CHECK: writes the pattern of released blocks. */
  fillReleased(ids: readonly BlockId[]): void;
  /** KVT_CHECK: the first of `ids` whose pattern was changed. */
  findTouched(ids: readonly BlockId[]): BlockId | undefined;
  close(): Promise<void>;
}
