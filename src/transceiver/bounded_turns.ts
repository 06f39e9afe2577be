/** After so long the event loop has its turn: timers and other sockets wait no longer for what has come in a burst. */
const BUDGET_MS = 0.5;

/**
 * Handles items in the order in which they come, at once while a turn's time lasts, then from turn to turn of the event loop. One that
 * throws does not hold up those behind it: the first error is thrown when the turn ends.
 */
export class BoundedTurns<Item> {
  readonly #handle: (item: Item) => void;
  readonly #nowMs: () => number;
  #items: Item[] = [];
  #next = 0;
  #state: "idle" | "running" | "scheduled" = "idle";
  readonly #whenIdle: (() => void)[] = [];

  /** @param nowMs a clock that never goes back */
  constructor(handle: (item: Item) => void, nowMs: () => number = () => performance.now()) {
    this.#handle = handle;
    this.#nowMs = nowMs;
  }

  /** Nothing waits, and nothing is being handled. */
  get isIdle(): boolean {
    return this.#state === "idle";
  }

  push(items: Iterable<Item>): void {
    for (const item of items) this.#items.push(item);
    if (this.#state === "idle") this.#turn();
  }

  /** Forgets what waits. */
  clear(): void {
    this.#items = [];
    this.#next = 0;
  }

  /** Resolves when nothing waits any more. */
  idle(): Promise<void> {
    if (this.isIdle) return Promise.resolve();
    return new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  #turn(): void {
    this.#state = "running";
    const endMs = this.#nowMs() + BUDGET_MS;
    const thrown: unknown[] = [];
    while (this.#next < this.#items.length) {
      const item = this.#items[this.#next++] as Item;
      try {
        this.#handle(item);
      } catch (error) {
        thrown.push(error);
      }
      if (this.#nowMs() >= endMs) break;
    }
    if (this.#next < this.#items.length) {
      this.#state = "scheduled";
      setImmediate(() => this.#turn());
    } else {
      this.clear();
      this.#state = "idle";
      for (const tell of this.#whenIdle.splice(0)) tell();
    }
    if (thrown.length > 0) throw thrown[0];
  }
}
