import type { RouterType } from "../config/router_file.ts";
import { KvError } from "../errors.ts";
import { RoundRobin } from "./policies/round_robin.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

/** How a request of one role finds its worker. One object a role; calls come one at a time, from the event loop. */
export interface RoutingPolicy {
  readonly name: RouterType;
  /**
   * Picks one of `candidates`, which is never empty, is in the order of the router's file, and holds only workers that can take the
   * request now. The choice counts as a reservation until `finish`.
   */
  choose(candidates: readonly UpstreamWorker[]): UpstreamWorker;
  /** Ends the reservation: exactly once for each choice, whatever became of the request. */
  finish(worker: UpstreamWorker): void;
}

/** @throws KvError NOT_PROVIDED */
export function createPolicy(type: RouterType): RoutingPolicy {
  if (type === "round_robin") return new RoundRobin();
  throw new KvError("NOT_PROVIDED", {
    what: `router type ${type}`,
    why: "it is not built yet",
    remedy: "use round_robin",
  });
}
