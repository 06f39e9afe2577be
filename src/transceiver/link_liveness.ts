import type { DataPlane, PlaneTimer } from "./data_plane.ts";
import { renewalPeriodMs } from "./lease_view.ts";

/** Periods without a byte from the sender after which it counts as lost. */
const SILENT_PERIODS = 3;

/** Beats once a renewal period while a link is in use, and knows how long its sender has been silent. */
export class LinkLiveness {
  readonly #plane: DataPlane;
  readonly #leaseMs: () => number;
  readonly #beat: (nowMs: number, silentMs: number | null) => void;
  #timer: PlaneTimer | null = null;
  #lastBeatMs = 0;
  #heardMs = 0;

  /** @param beat `silentMs`: for so long, which is too long; else null */
  constructor(plane: DataPlane, leaseMs: () => number, beat: (nowMs: number, silentMs: number | null) => void) {
    this.#plane = plane;
    this.#leaseMs = leaseMs;
    this.#beat = beat;
  }

  /** A byte of the sender is here. */
  heard(): void {
    this.#heardMs = this.#plane.nowMs();
  }

  /** Whole milliseconds since then. */
  get unheardMs(): number {
    return Math.round(this.#plane.nowMs() - this.#heardMs);
  }

  /** No-op while it beats. */
  start(): void {
    if (this.#timer !== null) return;
    this.#lastBeatMs = this.#plane.nowMs();
    this.#schedule();
  }

  stop(): void {
    this.#timer?.clear();
    this.#timer = null;
  }

  #schedule(): void {
    const atMs = this.#plane.nowMs() + renewalPeriodMs(this.#leaseMs());
    this.#timer = this.#plane.timer(atMs, () => this.#ring());
  }

  #ring(): void {
    const now = this.#plane.nowMs();
    const period = renewalPeriodMs(this.#leaseMs());
    // This process was stopped or busy: what the sender wrote meanwhile is still unread, so its silence proves nothing yet.
    if (now - this.#lastBeatMs > 2 * period) this.#heardMs = now;
    this.#lastBeatMs = now;
    this.#schedule();
    const silentMs = now - this.#heardMs;
    this.#beat(now, silentMs > SILENT_PERIODS * period ? silentMs : null);
  }
}
