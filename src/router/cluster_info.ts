import type { Hop } from "../openai/index.ts";
import type { Fleet } from "./fleet.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

const roleNumbers = { context: 0, generation: 1 } as const satisfies Record<Hop, number>;

/** Body of GET /cluster_info (S115): the shape of trtllm-serve, and per worker what we know beyond it. */
export function clusterInfo(fleet: Fleet, nowMs: number) {
  const list = (role: Hop) => fleet.group(role).map((worker) => workerInfo(worker, role, nowMs));
  const readyUrls = (role: Hop): string[] =>
    fleet
      .group(role)
      .filter((worker) => worker.state === "ready")
      .map((worker) => worker.url);
  return {
    is_ready: fleet.isReady,
    ...(fleet.isReady ? {} : { reason: fleet.unreadyReason }),
    current_workers: { context_servers: list("context"), generation_servers: list("generation") },
    minimal_instances: {
      context_servers: Math.min(1, fleet.group("context").length),
      generation_servers: Math.min(1, fleet.group("generation").length),
    },
    incompatible_pairs: fleet.badPairs.map(({ context, generation, differences }) => ({
      context: context.url,
      generation: generation.url,
      differences,
    })),
    server_lists: { context: readyUrls("context"), generation: readyUrls("generation") },
  };
}

function workerInfo(worker: UpstreamWorker, role: Hop, nowMs: number) {
  const { hostname, port, protocol } = new URL(worker.origin);
  const info = worker.preparation?.info;
  return {
    worker_id: worker.url,
    host: hostname,
    port: Number(port === "" ? (protocol === "https:" ? 443 : 80) : port),
    role: roleNumbers[role],
    state: worker.state,
    reason: worker.reason,
    engine: info?.engine ?? null,
    kvt_protocol: info?.kvt_protocol ?? null,
    epoch: info?.epoch ?? null,
    transport: info?.transports ?? null,
    models: worker.preparation?.models.map(({ id }) => id) ?? [],
    last_seen_ms: worker.lastSeenMs === undefined ? null : Math.round(nowMs - worker.lastSeenMs),
    circuit: worker.breaker.state,
    requests_in_flight: worker.inFlight,
    clock_offset_s: worker.preparation?.clockOffsetS ?? null,
  };
}
