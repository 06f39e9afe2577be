/** A pull that wants to read. Who holds a turn may. */
export interface PullWaiter {
  /** Whom it reads from; one name a peer. */
  readonly peer: string;
  /** Tokens it has to fetch. */
  readonly size: number;
  turn(): void;
}

export interface TurnLimits {
  readonly total: number;
  readonly perPeer: number;
}

/** How often a waiting pull is overtaken by smaller ones that came later; then it goes before everybody. */
export const OVERTAKEN_MAX = 16;

interface Place {
  /** Pulls of about the same size keep the order of their arrival. */
  readonly sizeClass: number;
  overtaken: number;
}

/**
 * Bounds the pulls that run at the same time, in all and for each peer. The smallest goes first, so that a short prompt does not wait
 * for long ones; the others age by being overtaken, so that no stream of short prompts holds back a long one for ever.
 */
export class PullTurns<Waiter extends PullWaiter> {
  readonly #limits: TurnLimits;
  readonly #running = new Set<Waiter>();
  readonly #runningByPeer = new Map<string, number>();
  readonly #peerLimits = new Map<string, number>();
  /** In the order of arrival. */
  readonly #waiting = new Map<Waiter, Place>();

  constructor(limits: TurnLimits) {
    this.#limits = limits;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get running(): number {
    return this.#running.size;
  }

  holds(waiter: Waiter): boolean {
    return this.#running.has(waiter);
  }

  /** What the peer itself can serve at the same time; null forgets it. */
  limitPeer(peer: string, limit: number | null): void {
    if (limit === null) this.#peerLimits.delete(peer);
    else this.#peerLimits.set(peer, limit);
    this.#advance();
  }

  join(waiter: Waiter): void {
    if (this.#running.has(waiter)) return;
    if (this.#waiting.size === 0 && this.#hasRoom(waiter)) {
      this.#run(waiter);
      return;
    }
    this.#waiting.set(waiter, { sizeClass: Math.floor(Math.log2(Math.max(1, waiter.size))), overtaken: 0 });
    this.#advance();
  }

  /** Idempotent. */
  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
    if (!this.#running.delete(waiter)) return;
    const left = (this.#runningByPeer.get(waiter.peer) ?? 1) - 1;
    if (left === 0) this.#runningByPeer.delete(waiter.peer);
    else this.#runningByPeer.set(waiter.peer, left);
    this.#advance();
  }

  #hasRoom({ peer }: Waiter): boolean {
    const { total, perPeer } = this.#limits;
    const limit = Math.min(perPeer, this.#peerLimits.get(peer) ?? perPeer);
    return this.#running.size < total && (this.#runningByPeer.get(peer) ?? 0) < limit;
  }

  #advance(): void {
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      this.#waiting.delete(next);
      this.#run(next);
    }
  }

  #run(waiter: Waiter): void {
    this.#running.add(waiter);
    this.#runningByPeer.set(waiter.peer, (this.#runningByPeer.get(waiter.peer) ?? 0) + 1);
    waiter.turn();
  }

  /** The smallest whose peer has room, unless one before it has been overtaken often enough; those it passes age. */
  #next(): Waiter | undefined {
    if (this.#waiting.size === 0 || this.#running.size >= this.#limits.total) return undefined;
    let best: Waiter | undefined;
    let bestClass = Number.POSITIVE_INFINITY;
    const passed: Place[] = [];
    let passedByBest = 0;
    for (const [waiter, place] of this.#waiting) {
      if (!this.#hasRoom(waiter)) continue;
      if (place.overtaken >= OVERTAKEN_MAX) {
        best = waiter;
        passedByBest = 0;
        break;
      }
      if (place.sizeClass < bestClass) {
        best = waiter;
        bestClass = place.sizeClass;
        passedByBest = passed.length;
      }
      passed.push(place);
    }
    for (const place of passed.slice(0, passedByBest)) place.overtaken++;
    return best;
  }
}
