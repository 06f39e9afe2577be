import type { BlockId } from "../../src/ids.ts";
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
  ReadStatus,
} from "../../src/transceiver/data_plane.ts";
import type { LayerSpan } from "../../src/transceiver/read_front.ts";
import type { SimProcess } from "./process.ts";
import type { World } from "./world.ts";

interface SimLease extends PlaneLease {
  readonly durationMs: number;
  readonly over: () => void;
  readonly stalled: () => void;
  /** On this process's clock; null: over or dropped, decided on the owner thread. */
  endMs: number | null;
  dropped: boolean;
}

interface SimPeer extends PlanePeer {
  readonly target: SimProcess | null;
  released: boolean;
}

/** A read whose bytes may still move. */
interface RunningRead {
  readonly target: Uint32Array;
  readonly fromToken: number;
  readonly toToken: number;
  readonly layers: LayerSpan | null;
  /** Its session has heard how it ended; the bytes may still move, after a cancel. */
  told: boolean;
  /** Its session has asked to stop it. */
  cancelled: boolean;
}

/** What the next reads of a process suffer: how many of each. */
export interface ReadFaults {
  hang: number;
  fail: number;
  flip: number;
  slow: number;
  digest: number;
}

/**
 * The data plane in virtual time, as native/dataplane behaves: commands reach an owner thread after a while, in order; what it decides
 * reaches JavaScript after a while, in order; bytes move block by block at moments of their own, and may move late or never.
 */
export class SimPlane implements DataPlane {
  readonly #world: World;
  readonly #process: SimProcess;
  readonly descriptor: Uint8Array;
  readonly faults: ReadFaults = { hang: 0, fail: 0, flip: 0, slow: 0, digest: 0 };
  readonly #commands: (() => void)[] = [];
  readonly #completions: (() => void)[] = [];
  readonly #running = new Set<RunningRead>();
  #starvedUntil = 0;
  readonly #held = new Set<SimLease>();
  #timers = 0;
  #holds = 0;

  constructor(world: World, process: SimProcess) {
    this.#world = world;
    this.#process = process;
    this.descriptor = new TextEncoder().encode(process.name);
  }

  get holds(): number {
    return this.#holds;
  }

  get leasesHeld(): number {
    return this.#held.size;
  }

  /** Neither fired nor cleared. */
  get timers(): number {
    return this.#timers;
  }

  /** Reads that may still touch their blocks. */
  get running(): ReadonlySet<RunningRead> {
    return this.#running;
  }

  nowMs(): number {
    return this.#process.clock.nowMs();
  }

  /** Nothing gets to the owner thread or back until then: so long that a whole lease may pass. */
  starve(untilMs: number): void {
    this.#starvedUntil = untilMs;
  }

  get #starvedFor(): number {
    return Math.max(0, this.#starvedUntil - this.#world.time.now);
  }

  /** To the owner thread, in the order of the calls. */
  #command(run: () => void): void {
    this.#commands.push(run);
    if (this.#commands.length > 1) return;
    this.#process.later(this.#process.noise.delay(this.#world.delays.owner) + this.#starvedFor, () => {
      for (const command of this.#commands.splice(0)) command();
    });
  }

  /** To the JavaScript thread, in the order of the decisions. */
  #complete(run: () => void): void {
    this.#completions.push(run);
    if (this.#completions.length > 1) return;
    this.#process.later(this.#process.noise.delay(this.#world.delays.owner * 4) + this.#starvedFor, () => {
      for (const completion of this.#completions.splice(0)) completion();
    });
  }

  lease(durationMs: number, over: () => void, { stalled }: LeaseGrant): PlaneLease {
    const lease: SimLease = {
      durationMs,
      over,
      stalled,
      endMs: null,
      dropped: false,
      drop: () => {
        lease.dropped = true;
        this.#command(() => this.#endLease(lease));
      },
    };
    this.#command(() => {
      lease.endMs = this.nowMs() + durationMs;
      this.#held.add(lease);
      this.#watch(lease);
    });
    return lease;
  }

  /** Whoever has a lease here keeps a staging slot longer than it may. */
  stallSlots(): void {
    for (const lease of this.#held) {
      this.#complete(() => {
        if (!lease.dropped) lease.stalled();
      });
    }
  }

  #endLease(lease: SimLease): boolean {
    if (lease.endMs === null) return false;
    lease.endMs = null;
    this.#held.delete(lease);
    return true;
  }

  #expire(lease: SimLease): void {
    if (lease.endMs === null || this.nowMs() < lease.endMs) return;
    this.#endLease(lease);
    this.#complete(() => {
      if (!lease.dropped) lease.over();
    });
  }

  #watch(lease: SimLease): void {
    if (lease.endMs === null) return;
    this.#process.atClock(lease.endMs, () => {
      this.#expire(lease);
      this.#watch(lease);
    });
  }

  renew(leases: readonly PlaneLease[], renewed: (held: ReadonlySet<PlaneLease>) => void): void {
    this.#command(() => {
      const held = new Set<PlaneLease>();
      for (const lease of leases as readonly SimLease[]) {
        this.#expire(lease);
        if (lease.endMs === null) continue;
        lease.endMs = this.nowMs() + lease.durationMs;
        held.add(lease);
      }
      this.#complete(() => renewed(held));
    });
  }

  timer(atMs: number, fire: () => void): PlaneTimer {
    let over = false;
    this.#timers++;
    const clear = (): void => {
      if (!over) this.#timers--;
      over = true;
    };
    this.#process.atClock(atMs, () => {
      if (over) return;
      this.#complete(() => {
        if (over) return;
        clear();
        fire();
      });
    });
    return { clear };
  }

  reach(descriptor: Uint8Array, timeoutMs: number, listener: ReachListener): PlanePeer {
    const target = this.#world.processOf(new TextDecoder().decode(descriptor));
    const { noise } = this.#process;
    const { network } = this.#world.delays;
    const peer: SimPeer = {
      target,
      released: false,
      connected: () => {},
      release: () => {
        peer.released = true;
      },
    };
    let told = false;
    const tell = (failure: string | null): void => {
      if (told) return;
      told = true;
      this.#complete(() => {
        if (!peer.released) listener.reached(failure, "shared_memory");
      });
    };
    this.#process.atClock(this.nowMs() + timeoutMs, () => tell("it took too long"));
    this.#command(() => {
      // The peer's exchange thread answers, unless it is stopped or dead.
      if (target === null || target.dead) {
        tell("its socket for the exchange of memory is gone");
        return;
      }
      target.later(noise.delay(network), () => {
        this.#process.soon(() => tell(null));
        if (!this.#world.deathsAreSeen) return;
        target.onDeath(() => {
          this.#process.later(noise.delay(network * 20), () =>
            this.#complete(() => {
              if (!peer.released && told) listener.dead();
            }),
          );
        });
      });
    });
    return peer;
  }

  digest({ blocks, ranges, part }: DigestRequest, done: (digests: Uint8Array) => void): void {
    const slow = this.#suffers("digest") ? 1 + 60 * this.#process.noise.unit() : 1;
    this.#command(() =>
      this.#process.later(this.#process.noise.delay(this.#world.delays.copy * slow), () => {
        const digests = this.#process.memory.digests(blocks, ranges, part);
        this.#complete(() => done(digests));
      }),
    );
  }

  expectRead(): void {}

  #suffers(kind: keyof ReadFaults): boolean {
    if (this.faults[kind] === 0) return false;
    this.faults[kind]--;
    return true;
  }

  read(request: ReadRequest, listener: ReadListener): PlaneRead {
    const { delays, limits } = this.#world;
    const { noise, memory } = this.#process;
    const source = (request.peer as SimPeer).target;
    const { target: into, fromToken, toToken, layers } = request;
    const running: RunningRead = { target: into, fromToken, toToken, layers, told: false, cancelled: false };
    this.#world.oracle.readPosted(this.#process, running);
    this.#running.add(running);
    let ended = false;
    let stopped = false;
    let movedMs = this.nowMs();
    const end = (status: ReadStatus, bytes: number): void => {
      if (ended) return;
      ended = true;
      if (status === "ok" && source !== null) this.#world.oracle.readSeen(this.#process, running, source);
      const atMs = this.#world.defects.has("clock before poll") ? movedMs : this.nowMs();
      this.#complete(() => {
        running.told = true;
        listener.ended({ status, bytes, movingMs: 1, atMs, path: "shared_memory", runs: 1, pieces: 1 });
      });
    };
    const quiet = (): void =>
      this.#complete(() => {
        this.#running.delete(running);
        listener.quiet();
      });
    const generations = new Map<number, number>();
    for (const id of request.target) generations.set(id, memory.generationOf(id as BlockId));

    const hangs = this.#suffers("hang");
    const fails = this.#suffers("fail");
    const flips = this.#suffers("flip");
    const pieces = memory.piecesOf(request.fromToken, request.toToken);
    // Slow, but never slower than the run has time to see it end.
    const slow = this.#suffers("slow") ? 1 + 60 * noise.unit() : 1;
    const pause = (): number => Math.min(noise.delay(delays.copy * slow), 3 * limits.leaseMs);
    const moveNext = (index: number): void => {
      if (stopped) {
        quiet();
        return;
      }
      const piece = pieces[index];
      if (piece === undefined || (fails && index === pieces.length - 1)) {
        // A poll of the owner, a while after the last byte.
        this.#process.later(noise.delay(delays.owner), () => {
          end(fails ? "failed" : "ok", (request.toToken - request.fromToken) * 4);
          quiet();
        });
        return;
      }
      if (hangs && index === 0) return;
      movedMs = this.nowMs();
      if (source !== null) {
        const target = request.target[piece.block] as BlockId;
        const from = request.source[piece.block] as BlockId;
        memory.copy(source.memory, from, target, piece, generations.get(target) ?? 0, layers);
        if (flips && index === 0) this.#world.flipped(this.#process, target, piece.from);
      }
      this.#process.later(pause(), () => moveNext(index + 1));
    };
    this.#command(() => this.#process.later(pause(), () => moveNext(0)));

    const stop = (status: ReadStatus): void => {
      if (ended) return;
      end(status, 0);
      // The piece that is being copied is still finished: quiet comes with the next one.
      stopped = true;
    };
    if (Number.isFinite(request.deadlineMs)) this.#process.atClock(request.deadlineMs, () => stop("timed_out"));
    return {
      cancel: () => {
        running.cancelled = true;
        this.#command(() => stop("cancelled"));
      },
    };
  }

  hold(): void {
    this.#holds++;
  }

  letGo(): void {
    this.#holds--;
  }

  fillReleased(): void {}

  findTouched(): undefined {
    return undefined;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
