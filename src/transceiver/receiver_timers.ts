import type { DataPlane, PlaneTimer } from "./data_plane.ts";
import type { ReceiverLimits } from "./receiver_house.ts";

/** A receiver session's timers. Each is cleared when the session has its outcome. */
export class ReceiverTimers {
  readonly #plane: DataPlane;
  readonly #limits: ReceiverLimits;
  #queue: PlaneTimer | null = null;
  #transfer: PlaneTimer | null = null;
  #retry: PlaneTimer | null = null;
  #queueEndsMs = 0;
  #deadlineMs = Number.POSITIVE_INFINITY;

  constructor(plane: DataPlane, limits: ReceiverLimits) {
    this.#plane = plane;
    this.#limits = limits;
  }

  /** When the queue timer that was started last ends. */
  get queueEndsMs(): number {
    return this.#queueEndsMs;
  }

  /** When the transfer timer ends; Infinity without one. */
  get deadlineMs(): number {
    return this.#deadlineMs;
  }

  /** No-op while it runs. */
  startQueue(fire: () => void): void {
    if (this.#queue !== null) return;
    this.#queueEndsMs = this.#plane.nowMs() + this.#limits.queueMs;
    this.#queue = this.#plane.timer(this.#queueEndsMs, fire);
  }

  stopQueue(): void {
    this.#queue?.clear();
    this.#queue = null;
  }

  /** No-op while it runs: a later attempt runs in the time of the first. */
  startTransfer(fire: () => void): void {
    if (this.#transfer === null) this.restartTransfer(fire);
  }

  restartTransfer(fire: () => void): void {
    if (this.#limits.transferMs === null) return;
    this.#transfer?.clear();
    this.#deadlineMs = this.#plane.nowMs() + this.#limits.transferMs;
    this.#transfer = this.#plane.timer(this.#deadlineMs, fire);
  }

  startRetry(atMs: number, fire: () => void): void {
    this.#retry = this.#plane.timer(atMs, fire);
  }

  stopRetry(): void {
    this.#retry?.clear();
    this.#retry = null;
  }

  clear(): void {
    for (const timer of [this.#queue, this.#transfer, this.#retry]) timer?.clear();
  }
}
