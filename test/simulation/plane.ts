import type { BlockId } from "../../src/ids.ts";
import type {
  DataPlane,
  DigestRequest,
  PlaneLease,
  PlanePeer,
  PlaneRead,
  PlaneTimer,
  ReachListener,
  ReadListener,
  ReadRequest,
  ReadStatus,
} from "../../src/transceiver/data_plane.ts";
import type { SimProcess } from "./process.ts";
import type { World } from "./world.ts";

interface SimLease extends PlaneLease {
  readonly durationMs: number;
  readonly over: () => void;
  /** On this process's clock; null: over or dropped, decided on the owner thread. */
  endMs: number | null;
  dropped: boolean;
}

interface SimPeer extends PlanePeer {
  readonly target: SimProcess | null;
  released: boolean;
}

/**
 * The data plane in virtual time, as native/dataplane behaves: commands reach an owner thread after a while, in order; what it decides
 * reaches JavaScript after a while, in order; bytes move block by block at moments of their own, and may move late or never.
 */
export class SimPlane implements DataPlane {
  readonly #world: World;
  readonly #process: SimProcess;
  readonly descriptor: Uint8Array;
  readonly #commands: (() => void)[] = [];
  readonly #completions: (() => void)[] = [];
  #leasesHeld = 0;
  #holds = 0;
  unquietReads = 0;

  constructor(world: World, process: SimProcess) {
    this.#world = world;
    this.#process = process;
    this.descriptor = new TextEncoder().encode(process.name);
  }

  get holds(): number {
    return this.#holds;
  }

  get leasesHeld(): number {
    return this.#leasesHeld;
  }

  nowMs(): number {
    return this.#process.clock();
  }

  /** To the owner thread, in the order of the calls. Now and then it gets no CPU for so long that a whole lease could have passed. */
  #command(run: () => void): void {
    this.#commands.push(run);
    if (this.#commands.length > 1) return;
    const { random, delays, faults, limits } = this.#world;
    const starved = faults.chance("starvedOwner") ? random.between(0, limits.leaseMs * 2) : 0;
    this.#process.later(random.delay(delays.command) + starved, () => {
      for (const command of this.#commands.splice(0)) command();
    });
  }

  /** To the JavaScript thread, in the order of the decisions. */
  #complete(run: () => void): void {
    this.#completions.push(run);
    if (this.#completions.length > 1) return;
    this.#process.later(this.#world.random.delay(this.#world.delays.completion), () => {
      for (const completion of this.#completions.splice(0)) completion();
    });
  }

  lease(durationMs: number, over: () => void): PlaneLease {
    const lease: SimLease = {
      durationMs,
      over,
      endMs: null,
      dropped: false,
      drop: () => {
        lease.dropped = true;
        this.#command(() => this.#endLease(lease));
      },
    };
    this.#command(() => {
      lease.endMs = this.nowMs() + durationMs;
      this.#leasesHeld++;
      this.#watch(lease);
    });
    return lease;
  }

  #endLease(lease: SimLease): boolean {
    if (lease.endMs === null) return false;
    lease.endMs = null;
    this.#leasesHeld--;
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
    let cleared = false;
    this.#process.atClock(atMs, () => {
      if (cleared) return;
      this.#complete(() => {
        if (cleared) return;
        cleared = true;
        fire();
      });
    });
    return {
      clear: () => {
        cleared = true;
      },
    };
  }

  reach(descriptor: Uint8Array, timeoutMs: number, listener: ReachListener): PlanePeer {
    const target = this.#world.processOf(new TextDecoder().decode(descriptor));
    const peer: SimPeer = {
      target,
      released: false,
      release: () => {
        peer.released = true;
      },
    };
    let told = false;
    const tell = (failure: string | null): void => {
      if (told) return;
      told = true;
      this.#complete(() => {
        if (!peer.released) listener.reached(failure);
      });
    };
    this.#process.atClock(this.nowMs() + timeoutMs, () => tell("it took too long"));
    this.#command(() => {
      // The peer's exchange thread answers, unless it is stopped or dead.
      if (target === null || target.dead) {
        tell("its socket for the exchange of memory is gone");
        return;
      }
      target.later(this.#world.random.delay(this.#world.delays.network), () => {
        this.#process.soon(() => tell(null));
        target.onDeath(() => {
          this.#process.later(this.#world.random.delay(this.#world.delays.network * 20), () =>
            this.#complete(() => {
              if (!peer.released && told) listener.dead();
            }),
          );
        });
      });
    });
    return peer;
  }

  digest({ blocks, ranges }: DigestRequest, done: (digests: Uint8Array) => void): void {
    this.#command(() =>
      this.#process.later(this.#world.random.delay(this.#world.delays.copy), () => {
        const digests = this.#process.memory.digests(blocks, ranges);
        this.#complete(() => done(digests));
      }),
    );
  }

  expectRead(): void {}

  read(request: ReadRequest, listener: ReadListener): PlaneRead {
    const { random, delays, faults } = this.#world;
    const source = (request.peer as SimPeer).target;
    let ended = false;
    let stopped = false;
    const end = (status: ReadStatus, bytes: number): void => {
      if (ended) return;
      ended = true;
      // The owner reads its clock after the poll that saw the end.
      const atMs = this.nowMs();
      this.#complete(() =>
        listener.ended({ status, bytes, movingMs: 1, atMs, path: "shared_memory", runs: 1, pieces: 1 }),
      );
    };
    this.unquietReads++;
    const quiet = (): void =>
      this.#complete(() => {
        this.unquietReads--;
        listener.quiet();
      });
    const generations = new Map<number, number>();
    for (const id of request.target) generations.set(id, this.#process.memory.generationOf(id as BlockId));

    const hangs = faults.chance("hangingRead");
    const fails = faults.chance("failingRead");
    const pieces = this.#process.memory.piecesOf(request.fromToken, request.toToken);
    // Slow, but never slower than the run has time to see it end.
    const slow = faults.chance("slowRead") ? random.between(1, 60) : 1;
    const pause = (): number => Math.min(random.delay(delays.copy * slow), 3 * this.#world.limits.leaseMs);
    const moveNext = (index: number): void => {
      if (stopped) {
        quiet();
        return;
      }
      const piece = pieces[index];
      if (piece === undefined || (fails && index === pieces.length - 1)) {
        // A poll of the owner, a while after the last byte.
        this.#process.later(random.delay(delays.command), () => {
          const tokens = request.toToken - request.fromToken;
          end(fails ? "failed" : "ok", tokens * 4);
          quiet();
        });
        return;
      }
      if (hangs && index === 0) {
        return;
      }
      if (source !== null) {
        const target = request.target[piece.block] as BlockId;
        this.#process.memory.copy(
          source.memory,
          request.source[piece.block] as BlockId,
          target,
          piece,
          generations.get(target) ?? 0,
        );
        if (faults.chance("flippedByte")) this.#process.memory.flip(target, piece.from);
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
    return { cancel: () => this.#command(() => stop("cancelled")) };
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
