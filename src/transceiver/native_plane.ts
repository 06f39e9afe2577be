import type { BlockId } from "../ids.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { NativeBinding } from "../native/binding.ts";
import {
  completionKind,
  type NativeDataPlane,
  type NativeDataPlaneOptions,
  RECORD_WORDS,
  reachStatus,
} from "../native/plane_binding.ts";
import { BoundedTurns } from "./bounded_turns.ts";
import type {
  DataPlane,
  DigestRequest,
  LeaseGrant,
  PlaneLease,
  PlanePeer,
  PlaneRead,
  PlaneTimer,
  ReachListener,
  ReadListener,
  ReadRequest,
  WireTelemetry,
} from "./data_plane.ts";
import { memoryError, openError, pathNameOf, reachFailureOf, readStatusOf } from "./native_codes.ts";
import { TimerQueue } from "./timer_queue.ts";

/** The one timer of the addon that is used. */
const ALARM = 0;

const ALL_LAYERS = { from: 0, to: 0xffffffff };
const EVERYTHING = Uint32Array.of(0, 0xffffffff, 0, 0xffffffff, 1);
const wordsOf = ({ layers, heads, replicated }: RankPart): Uint32Array =>
  Uint32Array.of(layers.from, layers.to - layers.from, heads.from, heads.to - heads.from, replicated ? 1 : 0);

interface Renewal {
  readonly held: Set<PlaneLease>;
  readonly renewed: (held: ReadonlySet<PlaneLease>) => void;
}

class Lease implements PlaneLease {
  readonly id: number;
  readonly over: () => void;
  readonly stalled: () => void;
  readonly #onDrop: (lease: Lease) => void;

  constructor(
    id: number,
    { over, stalled }: { readonly over: () => void; readonly stalled: () => void },
    onDrop: (lease: Lease) => void,
  ) {
    this.id = id;
    this.over = over;
    this.stalled = stalled;
    this.#onDrop = onDrop;
  }

  drop(): void {
    this.#onDrop(this);
  }
}

class Peer implements PlanePeer {
  readonly id: number;
  readonly listener: ReachListener;
  readonly #native: NativeDataPlane;
  readonly #onRelease: (peer: Peer) => void;

  constructor(
    id: number,
    listener: ReachListener,
    { native, onRelease }: { readonly native: NativeDataPlane; readonly onRelease: (peer: Peer) => void },
  ) {
    this.id = id;
    this.listener = listener;
    this.#native = native;
    this.#onRelease = onRelease;
  }

  connected(connection: number | null): void {
    this.#native.peerConnected(this.id, connection);
  }

  release(): void {
    this.#onRelease(this);
  }
}

/** The data plane of the addon. The only file that posts jobs, leases and timers there, and that reads its completions. */
export class NativePlane implements DataPlane {
  readonly #binding: NativeBinding;
  readonly #native: NativeDataPlane;
  readonly #reads = new Map<number, ReadListener>();
  readonly #leases = new Map<number, Lease>();
  readonly #peers = new Map<number, Peer>();
  readonly #digests = new Map<number, (digests: Uint8Array) => void>();
  readonly #timers = new TimerQueue((atMs) => this.#native.setTimer(ALARM, Math.max(0, atMs)));
  readonly #renewals = new Map<number, Renewal>();
  /** Between WIRE and JOB. */
  readonly #wires = new Map<number, WireTelemetry>();
  readonly #completions = new BoundedTurns<Float64Array>((record) => this.#completed(record));
  #lastId = 0;
  /** Work was given in this turn of the event loop. */
  #turn: "idle" | "woken" | "corked" = "idle";
  #expecting = false;
  #holds = 0;
  #closing: Promise<void> | undefined;
  /** `descriptor` is another one now, or no path over NIXL works any more. */
  renewed: (() => void) | null = null;

  private constructor(binding: NativeBinding, native: NativeDataPlane) {
    this.#binding = binding;
    this.#native = native;
  }

  /** @throws KvError POOL_UNAVAILABLE, MEMORY_REFUSED, SOCKET_DIR_REFUSED, DESCRIPTOR_TOO_LONG, NIXL_UNUSABLE, NIXL_FAILED, STAGING_UNAVAILABLE, CUDA_UNUSABLE, CUDA_FAILED */
  static async open(binding: NativeBinding, options: NativeDataPlaneOptions): Promise<NativePlane> {
    let plane: NativePlane | undefined;
    try {
      // Nothing can complete before something was asked of it.
      const native = await binding.openDataPlane(options, (batch) => {
        if (plane !== undefined) plane.#deliver(batch);
      });
      plane = new NativePlane(binding, native);
      return plane;
    } catch (error) {
      throw openError(error, options);
    }
  }

  get native(): NativeDataPlane {
    return this.#native;
  }

  get descriptor(): Uint8Array {
    return this.#native.descriptor;
  }

  nowMs(): number {
    return this.#binding.bootTimeMs();
  }

  reach(descriptor: Uint8Array, timeoutMs: number, listener: ReachListener): PlanePeer {
    const onRelease = (released: Peer): void => {
      if (this.#peers.delete(released.id)) this.#native.releasePeer(released.id);
    };
    const peer = new Peer(++this.#lastId, listener, { native: this.#native, onRelease });
    this.#peers.set(peer.id, peer);
    this.#native.reach(peer.id, descriptor, timeoutMs);
    return peer;
  }

  expectRead(): void {
    if (this.#expecting) return;
    this.#expecting = true;
    // After what was written in this turn has gone out: whoever answers it works meanwhile.
    queueMicrotask(() => {
      this.#expecting = false;
      this.#native.expect();
    });
  }

  read(request: ReadRequest, listener: ReadListener): PlaneRead {
    this.#giveWork();
    const id = ++this.#lastId;
    const peer = request.peer instanceof Peer ? request.peer.id : 0;
    this.#reads.set(id, listener);
    const { source, target, fromToken, toToken, sequenceTokens, replicated, deadlineMs, layers, transferId } = request;
    const { from, to } = layers ?? ALL_LAYERS;
    this.#native.post(
      id,
      peer,
      source,
      target,
      fromToken,
      toToken,
      sequenceTokens,
      replicated,
      deadlineMs,
      from,
      to,
      transferId,
    );
    return {
      cancel: () => {
        if (this.#reads.has(id)) this.#native.cancel(id);
      },
    };
  }

  digest({ blocks, ranges, sequenceTokens, part }: DigestRequest, done: (digests: Uint8Array) => void): void {
    this.#giveWork();
    const id = ++this.#lastId;
    this.#digests.set(id, done);
    this.#native.digest(id, blocks, ranges, part === undefined ? EVERYTHING : wordsOf(part), sequenceTokens);
  }

  lease(durationMs: number, over: () => void, { transferId, blocks, stalled }: LeaseGrant): PlaneLease {
    const lease = new Lease(++this.#lastId, { over, stalled }, (dropped) => {
      if (this.#leases.delete(dropped.id)) this.#native.dropLease(dropped.id);
    });
    this.#leases.set(lease.id, lease);
    this.#native.grant(lease.id, durationMs, transferId, Uint32Array.from(blocks));
    return lease;
  }

  renew(leases: readonly PlaneLease[], renewed: (held: ReadonlySet<PlaneLease>) => void): void {
    const seq = ++this.#lastId;
    const ids = leases.flatMap((lease) => (lease instanceof Lease && this.#leases.has(lease.id) ? [lease.id] : []));
    this.#renewals.set(seq, { held: new Set(), renewed });
    this.#native.renew(seq, Float64Array.from(ids));
  }

  timer(atMs: number, fire: () => void): PlaneTimer {
    return this.#timers.add(atMs, fire);
  }

  /** @throws KvError CUDA_FAILED */
  async copyOut(offset: number, bytes: number): Promise<Uint8Array> {
    try {
      return await this.#native.readMemory(offset, bytes);
    } catch (error) {
      throw memoryError(error);
    }
  }

  /** @throws KvError CUDA_FAILED */
  async copyIn(offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#native.writeMemory(offset, bytes);
    } catch (error) {
      throw memoryError(error);
    }
  }

  hold(): void {
    if (this.#holds++ === 0) this.#native.ref();
  }

  letGo(): void {
    if (--this.#holds === 0) this.#native.unref();
  }

  /** A plane that closes has no memory to look into: its last reads give their blocks back meanwhile. */
  fillReleased(ids: readonly BlockId[]): void {
    if (this.#closing !== undefined) return;
    this.#native.fillReleased(Uint32Array.from(ids));
  }

  findTouched(ids: readonly BlockId[]): BlockId | undefined {
    if (this.#closing !== undefined) return undefined;
    const touched = this.#native.findTouched(Uint32Array.from(ids));
    return touched < 0 ? undefined : (touched as BlockId);
  }

  close(): Promise<void> {
    // What was delivered before may still wait for its turn.
    this.#closing ??= this.#native.close().then(() => this.#completions.idle());
    return this.#closing;
  }

  /** The first work of a turn wakes the owner thread at once, all that follows in the same turn once more at its end. */
  #giveWork(): void {
    if (this.#turn === "corked") return;
    if (this.#turn === "woken") {
      this.#turn = "corked";
      this.#native.cork();
      return;
    }
    this.#turn = "woken";
    queueMicrotask(() => {
      if (this.#turn === "corked") this.#native.uncork();
      this.#turn = "idle";
    });
  }

  #deliver(batch: Float64Array): void {
    this.#completions.push(recordsOf(batch));
  }

  #completed(record: Float64Array): void {
    const [
      kind = 0,
      id = 0,
      status = 0,
      bytes = 0,
      queuedUs = 0,
      movingUs = 0,
      atMs = 0,
      extra = 0,
      runs = 0,
      pieces = 0,
    ] = record;
    switch (kind) {
      case completionKind.WIRE:
        this.#wires.set(id, {
          posts: status,
          postMs: queuedUs / 1000,
          transferMs: movingUs / 1000,
          descriptors: extra,
          bytes,
        });
        break;
      case completionKind.JOB: {
        const wire = this.#take(this.#wires, id);
        this.#reads.get(id)?.ended({
          status: readStatusOf[status] ?? "failed",
          bytes,
          movingMs: movingUs / 1000,
          atMs,
          path: pathNameOf[extra] ?? "unknown",
          runs,
          pieces,
          ...(wire && { wire }),
        });
        break;
      }
      case completionKind.JOB_QUIET:
        this.#take(this.#reads, id)?.quiet();
        break;
      case completionKind.RENEWED: {
        const lease = this.#leases.get(id);
        if (lease) this.#renewals.get(extra)?.held.add(lease);
        break;
      }
      case completionKind.RENEW_END: {
        const renewal = this.#take(this.#renewals, id);
        renewal?.renewed(renewal.held);
        break;
      }
      case completionKind.LEASE_OVER:
        this.#take(this.#leases, id)?.over();
        break;
      case completionKind.SLOT_STALLED:
        this.#leases.get(id)?.stalled();
        break;
      case completionKind.TIMER:
        this.#fireTimer(record);
        break;
      case completionKind.REACHED: {
        const peer = this.#peers.get(id);
        if (status !== reachStatus.OK) this.#peers.delete(id);
        const failure = status === reachStatus.OK ? null : (reachFailureOf[status] ?? `status ${status}`);
        peer?.listener.reached(failure, pathNameOf[bytes] ?? "unknown");
        break;
      }
      case completionKind.DIGESTED:
        // A plane that has closed meanwhile has none to give.
        if (this.#closing === undefined) this.#take(this.#digests, id)?.(this.#native.takeDigests(id));
        break;
      case completionKind.PATHS_RENEWED:
        this.renewed?.();
        break;
      case completionKind.PEER_DEAD:
        this.#peers.get(id)?.listener.dead();
        break;
    }
  }

  /** Each that is due takes its turn among the completions. */
  #fireTimer(record: Float64Array): void {
    let more = true;
    try {
      more = this.#timers.fireOne(this.nowMs());
    } finally {
      if (more) this.#completions.push([record]);
    }
  }

  #take<Value>(map: Map<number, Value>, id: number): Value | undefined {
    const value = map.get(id);
    map.delete(id);
    return value;
  }
}

function* recordsOf(batch: Float64Array): Iterable<Float64Array> {
  for (let at = 0; at < batch.length; at += RECORD_WORDS) yield batch.subarray(at, at + RECORD_WORDS);
}
