/** Lets at most `limit` pulls run; the others wait first come, first served. Waiting is not the transfer's time. */
export class PullTurns<Waiter extends { turn(): void }> {
  readonly #limit: number;
  readonly #running = new Set<Waiter>();
  readonly #waiting = new Set<Waiter>();

  constructor(limit: number) {
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  join(waiter: Waiter): void {
    this.#waiting.add(waiter);
    this.#advance();
  }

  /** Idempotent. */
  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
    if (this.#running.delete(waiter)) this.#advance();
  }

  #advance(): void {
    for (const waiter of this.#waiting) {
      if (this.#running.size >= this.#limit) return;
      this.#waiting.delete(waiter);
      this.#running.add(waiter);
      waiter.turn();
    }
  }
}
