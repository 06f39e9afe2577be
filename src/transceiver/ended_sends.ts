import type { EndedSend } from "./api.ts";
import type { DataPlane } from "./data_plane.ts";

/** Ended senders that nobody asked for, as many as may be open by default; more are forgotten, oldest first. */
const KEPT = 1024;

/** What `waitForSenders` hands out: each ended send once. */
export class EndedSends {
  readonly #plane: DataPlane;
  readonly #limitMs: number;
  #ended: EndedSend[] = [];
  readonly #waiting = new Set<() => void>();

  /** @param limitMs kv_transfer_sender_future_timeout_ms */
  constructor(plane: DataPlane, limitMs: number) {
    this.#plane = plane;
    this.#limitMs = limitMs;
  }

  add(ended: EndedSend): void {
    this.#ended.push(ended);
    if (this.#ended.length > KEPT) this.#ended.shift();
    for (const look of this.#waiting) look();
  }

  /** Resolves when `atLeast` have ended, when `open` answers that none is left to wait for, or at the limit. */
  wait(atLeast: number, open: () => number): Promise<readonly EndedSend[]> {
    return new Promise((resolve) => {
      const finish = (): void => {
        this.#waiting.delete(look);
        timer.clear();
        this.#plane.letGo();
        resolve(this.#ended.splice(0));
      };
      const look = (): void => {
        if (this.#ended.length >= atLeast || open() === 0) finish();
      };
      this.#plane.hold();
      const timer = this.#plane.timer(this.#plane.nowMs() + this.#limitMs, finish);
      this.#waiting.add(look);
      look();
    });
  }
}
