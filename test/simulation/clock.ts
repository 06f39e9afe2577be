import type { VirtualTime } from "./virtual_time.ts";

/** CLOCK_BOOTTIME of one process's machine: true time with an offset and a rate of its own, and without the time in which a guest was paused. */
export class MachineClock {
  readonly #time: VirtualTime;
  readonly #rate: number;
  readonly #offset: number;
  #lost = 0;
  #frozenAt: number | null = null;

  constructor(time: VirtualTime, rate: number, offset: number) {
    this.#time = time;
    this.#rate = rate;
    this.#offset = offset;
  }

  nowMs(): number {
    return this.#offset + this.#rate * ((this.#frozenAt ?? this.#time.now) - this.#lost);
  }

  /** The true time at which it shows `clockMs`, if it does not stop before. */
  trueTimeOf(clockMs: number): number {
    return (clockMs - this.#offset) / this.#rate + this.#lost;
  }

  freeze(): void {
    this.#frozenAt ??= this.#time.now;
  }

  thaw(): void {
    if (this.#frozenAt === null) return;
    this.#lost += this.#time.now - this.#frozenAt;
    this.#frozenAt = null;
  }
}
