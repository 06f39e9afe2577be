/** What a pull waits for or does; the time between two phases belongs to the first. */
export type TransferPhase = "queue" | "connect" | "wait" | "move" | "verify" | "ended";

/** How long a pull stood in each phase, over all its attempts. */
export class TransferTimes {
  readonly #ms: Record<TransferPhase, number> = { queue: 0, connect: 0, wait: 0, move: 0, verify: 0, ended: 0 };
  #phase: TransferPhase = "queue";
  #sinceMs: number;

  constructor(nowMs: number) {
    this.#sinceMs = nowMs;
  }

  /** No-op in the phase that runs. */
  enter(phase: TransferPhase, nowMs: number): void {
    if (phase === this.#phase) return;
    this.#ms[this.#phase] += nowMs - this.#sinceMs;
    this.#phase = phase;
    this.#sinceMs = nowMs;
  }

  /** Complete once `ended` was entered. */
  get(phase: Exclude<TransferPhase, "ended">): number {
    return this.#ms[phase];
  }
}
