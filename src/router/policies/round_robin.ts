import type { RoutingPolicy } from "../policy.ts";
import type { UpstreamWorker } from "../upstream_worker.ts";

/** Next in the order of the file; workers that can't take the request are skipped without losing their turn for later. */
export class RoundRobin implements RoutingPolicy {
  readonly name = "round_robin";
  #last = -1;

  choose(candidates: readonly UpstreamWorker[]): UpstreamWorker {
    const next = candidates.find((worker) => worker.position > this.#last) ?? candidates[0];
    if (next === undefined) throw new RangeError("choose() was called without candidates");
    this.#last = next.position;
    return next;
  }

  finish(): void {
    // Nothing was reserved.
  }
}
