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
} from "../../src/transceiver/data_plane.ts";
import type { SimPlane } from "./plane.ts";
import type { ReadDuties } from "./read_duties.ts";

/** A deadline that somebody waits for. */
export interface SideTimer {
  readonly setMs: number;
  readonly atMs: number;
}

/** The plane as one side of a process uses it, its sender's or its receiver's: knows what that side has set going and not ended. */
export class SidePlane implements DataPlane {
  readonly #plane: SimPlane;
  /** Neither fired nor cleared. */
  readonly timers = new Set<SideTimer>();
  /** Neither dropped nor told to be over. */
  readonly leases = new Set<PlaneLease>();
  /** Those that the extension answered last has kept. */
  held: ReadonlySet<PlaneLease> = new Set();
  /** Extensions without answer. */
  renewing = 0;
  /** Digests that are computed. */
  digesting = 0;
  holds = 0;
  /** A peer could not be reached. */
  unreached: () => void = () => {};
  /** Digests of blocks are asked for; `first` is the first of them. */
  onDigest: (first: number) => void = () => {};
  /** Around the end of reads, by the first block that they write. */
  readonly onRead = new Map<number, Pick<ReadDuties, "whileEnded">>();

  readonly #isHasty: boolean;

  /** @param isHasty a deliberate defect: it is said that leases are held before it is decided */
  constructor(plane: SimPlane, isHasty: boolean) {
    this.#plane = plane;
    this.#isHasty = isHasty;
  }

  get descriptor(): Uint8Array {
    return this.#plane.descriptor;
  }

  nowMs(): number {
    return this.#plane.nowMs();
  }

  timer(atMs: number, fire: () => void): PlaneTimer {
    const mine = { setMs: this.nowMs(), atMs };
    this.timers.add(mine);
    const timer = this.#plane.timer(atMs, () => {
      this.timers.delete(mine);
      fire();
    });
    return {
      clear: () => {
        this.timers.delete(mine);
        timer.clear();
      },
    };
  }

  lease(durationMs: number, over: () => void, grant: LeaseGrant): PlaneLease {
    const ended = (): void => {
      this.leases.delete(lease);
      over();
    };
    const lease = this.#plane.lease(durationMs, ended, grant);
    const drop = lease.drop;
    lease.drop = () => {
      this.leases.delete(lease);
      drop();
    };
    this.leases.add(lease);
    return lease;
  }

  renew(leases: readonly PlaneLease[], renewed: (held: ReadonlySet<PlaneLease>) => void): void {
    if (this.#isHasty) {
      this.held = new Set(leases);
      renewed(this.held);
      this.#plane.renew(leases, () => {});
      return;
    }
    this.renewing++;
    this.#plane.renew(leases, (held) => {
      this.renewing--;
      this.held = held;
      renewed(held);
      this.held = new Set();
    });
  }

  digest(request: DigestRequest, done: (digests: Uint8Array) => void): void {
    this.digesting++;
    this.onDigest(request.blocks[0] ?? 0);
    this.#plane.digest(request, (digests) => {
      this.digesting--;
      done(digests);
    });
  }

  reach(descriptor: Uint8Array, timeoutMs: number, listener: ReachListener): PlanePeer {
    return this.#plane.reach(descriptor, timeoutMs, {
      reached: (failure, path) => {
        if (failure !== null) this.unreached();
        listener.reached(failure, path);
      },
      dead: () => listener.dead(),
    });
  }

  expectRead(): void {}

  read(request: ReadRequest, listener: ReadListener): PlaneRead {
    const { fromToken, toToken, layers } = request;
    const posted = { fromToken, toToken, layers, postedMs: this.nowMs() };
    const duties = this.onRead.get(request.target[0] ?? 0);
    return this.#plane.read(request, {
      ended: (end) => {
        if (duties === undefined) listener.ended(end);
        else duties.whileEnded(posted, end, () => listener.ended(end));
      },
      quiet: () => listener.quiet(),
    });
  }

  hold(): void {
    this.holds++;
    this.#plane.hold();
  }

  letGo(): void {
    this.holds--;
    this.#plane.letGo();
  }

  fillReleased(): void {}

  findTouched(): undefined {
    return undefined;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/**
 * Each of `expected` is a deadline that runs, and no other one does.
 * @param others which further ones may
 */
export function checkTimers(
  { timers }: SidePlane,
  expected: readonly number[],
  others: (timer: SideTimer) => boolean,
  broken: (what: string) => void,
): void {
  const left = [...expected];
  for (const timer of timers) {
    const index = left.findIndex((atMs) => Math.abs(atMs - timer.atMs) < 1e-6);
    if (index >= 0) left.splice(index, 1);
    else if (!others(timer)) {
      broken(`timer of ${Math.round(timer.atMs - timer.setMs)} ms runs for nothing`);
      return;
    }
  }
  if (left.length > 0) broken(`timer does not run: ${left.length} of ${expected.length}`);
}
