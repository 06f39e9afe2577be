import type { Clock } from "../clock.ts";

const FAILURES_TO_OPEN = 5;
const WINDOW_MS = 10_000;
const OPEN_MS_MIN = 5_000;
const OPEN_MS_MAX = 60_000;

/**
 * Keeps requests away from a worker that fails them (S136): 5 failures within 10 s open it for 5 s; then one request is let through,
 * and its failure opens it again for twice as long, up to 60 s.
 */
export class CircuitBreaker {
  readonly #clock: Clock;
  #failures: number[] = [];
  #openMs = OPEN_MS_MIN;
  #openUntil: number | undefined;
  #trialRuns = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get state(): "closed" | "open" | "half_open" {
    if (this.#openUntil === undefined) return "closed";
    return this.#clock.nowMs() < this.#openUntil ? "open" : "half_open";
  }

  /** Whether a request may be sent now. */
  get allows(): boolean {
    const state = this.state;
    return state === "closed" || (state === "half_open" && !this.#trialRuns);
  }

  /** A request was sent. Every start is followed by one of `succeeded`, `failed`, `ended`. */
  started(): void {
    if (this.state === "half_open") this.#trialRuns = true;
  }

  succeeded(): void {
    this.#failures = [];
    this.#openUntil = undefined;
    this.#openMs = OPEN_MS_MIN;
    this.#trialRuns = false;
  }

  failed(): void {
    const now = this.#clock.nowMs();
    this.#trialRuns = false;
    if (this.state === "half_open") {
      this.#openMs = Math.min(this.#openMs * 2, OPEN_MS_MAX);
      this.#openUntil = now + this.#openMs;
      return;
    }
    this.#failures = this.#failures.filter((at) => at > now - WINDOW_MS);
    this.#failures.push(now);
    if (this.#failures.length >= FAILURES_TO_OPEN && this.#openUntil === undefined) {
      this.#failures = [];
      this.#openUntil = now + this.#openMs;
    }
  }

  /** The request ended in a way that says nothing about the worker: the client left, the deadline came. */
  ended(): void {
    this.#trialRuns = false;
  }
}
