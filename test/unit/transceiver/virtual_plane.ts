import type { BlockId } from "../../../src/ids.ts";
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
} from "../../../src/transceiver/data_plane.ts";

interface Due {
  readonly atMs: number;
  readonly run: () => void;
}

class VirtualLease implements PlaneLease {
  endMs = 0;
  over = false;
  drop(): void {
    this.over = true;
  }
}

/**
 * A data plane with a clock that stands still until a test moves it. It shows how sessions react to completions and time; that bytes
 * arrive is shown over the real one only.
 */
export class VirtualPlane implements DataPlane {
  readonly descriptor = new Uint8Array(0);
  readonly reads: { readonly request: ReadRequest; readonly listener: ReadListener; cancelled: boolean }[] = [];
  holds = 0;
  #now = 1_000;
  #due: Due[] = [];
  #leases = new Map<VirtualLease, { readonly durationMs: number; readonly over: () => void }>();
  /** How long after the call a lease starts. */
  leaseStartMs = 0;

  nowMs(): number {
    return this.#now;
  }

  /** Runs everything that is due up to then, in order of time. */
  advance(ms: number): void {
    const until = this.#now + ms;
    for (;;) {
      const next = this.#due.filter(({ atMs }) => atMs <= until).sort((left, right) => left.atMs - right.atMs)[0];
      if (next === undefined) break;
      this.#due = this.#due.filter((due) => due !== next);
      this.#now = Math.max(this.#now, next.atMs);
      next.run();
    }
    this.#now = until;
  }

  /** Time passes for the clock alone, as in a stopped process. */
  stop(ms: number): void {
    this.#now += ms;
  }

  reach(_descriptor: Uint8Array, _timeoutMs: number, _listener: ReachListener): PlanePeer {
    return { connected: () => {}, release: () => {} };
  }

  expectRead(): void {}

  read(request: ReadRequest, listener: ReadListener): PlaneRead {
    const read = { request, listener, cancelled: false };
    this.reads.push(read);
    return {
      cancel: () => {
        read.cancelled = true;
      },
    };
  }

  /** Ends the nth read that was posted. */
  finish(index: number, status: "ok" | "failed" = "ok"): void {
    const read = this.reads[index];
    if (read === undefined) throw new Error(`no read ${index}`);
    read.listener.ended({ status, bytes: 64, movingMs: 1, atMs: this.#now, path: "shared_memory", runs: 1, pieces: 2 });
  }

  /** Answered by a test, in any order. */
  readonly digests: { readonly ranges: readonly number[]; readonly done: (digests: Uint8Array) => void }[] = [];

  digest({ ranges }: DigestRequest, done: (digests: Uint8Array) => void): void {
    this.digests.push({ ranges: [...ranges], done });
  }

  lease(durationMs: number, over: () => void, _grant: LeaseGrant): PlaneLease {
    const lease = new VirtualLease();
    lease.endMs = this.#now + this.leaseStartMs + durationMs;
    this.#leases.set(lease, { durationMs, over });
    this.#watch(lease, over);
    return lease;
  }

  renew(leases: readonly PlaneLease[], renewed: (held: ReadonlySet<PlaneLease>) => void): void {
    const held = new Set<PlaneLease>();
    for (const lease of leases) {
      const known = lease instanceof VirtualLease ? this.#leases.get(lease) : undefined;
      if (!(lease instanceof VirtualLease) || known === undefined || lease.over || lease.endMs <= this.#now) continue;
      lease.endMs = this.#now + known.durationMs;
      held.add(lease);
    }
    this.#due.push({ atMs: this.#now, run: () => renewed(held) });
  }

  timer(atMs: number, fire: () => void): PlaneTimer {
    const due = { atMs, run: fire };
    this.#due.push(due);
    return {
      clear: () => {
        this.#due = this.#due.filter((other) => other !== due);
      },
    };
  }

  hold(): void {
    this.holds++;
  }

  letGo(): void {
    this.holds--;
  }

  fillReleased(_ids: readonly BlockId[]): void {}

  findTouched(_ids: readonly BlockId[]): undefined {
    return undefined;
  }

  async close(): Promise<void> {}

  #watch(lease: VirtualLease, over: () => void): void {
    this.#due.push({
      atMs: lease.endMs,
      run: () => {
        if (lease.over) return;
        if (lease.endMs > this.#now) {
          this.#watch(lease, over);
          return;
        }
        lease.over = true;
        over();
      },
    });
  }
}
