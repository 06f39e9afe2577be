import type { WorkerRequest } from "./request.ts";

/** Where a request stood when nobody wanted its answer any more. */
export const departurePhases = ["queued", "prefill", "offered", "granted", "receiving", "decode"] as const;
export type DeparturePhase = (typeof departurePhases)[number];

/** Measures how long the blocks of requests that were given up stay taken: from the word that the client has left to the last release. */
export class Departures {
  readonly #left = new Map<WorkerRequest, { readonly phase: DeparturePhase; readonly atMs: number }>();
  readonly #nowMs: () => number;
  readonly #onFreed: (phase: DeparturePhase, ms: number) => void;

  constructor(nowMs: () => number, onFreed: (phase: DeparturePhase, ms: number) => void) {
    this.#nowMs = nowMs;
    this.#onFreed = onFreed;
  }

  /** The first word counts. */
  left(request: WorkerRequest, phase: DeparturePhase, atMs: number): void {
    if (!this.#left.has(request)) this.#left.set(request, { phase, atMs });
  }

  /** Nothing of the request is held any more; no-op for one that was not given up. */
  freed(request: WorkerRequest): void {
    const departure = this.#left.get(request);
    if (departure === undefined) return;
    this.#left.delete(request);
    this.#onFreed(departure.phase, this.#nowMs() - departure.atMs);
  }
}
