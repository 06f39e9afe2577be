import { latencyBuckets, Metrics, shortLatencyBuckets, sizeBuckets } from "../observability/metrics.ts";
import type { Transceiver } from "../transceiver/api.ts";
import type { DeparturePhase } from "./departures.ts";
import type { KvEvents } from "./kv_events.ts";
import type { PerfEntry } from "./perf_metrics.ts";
import type { RequestRecord, TransferRecord } from "./records.ts";
import type { StateChange } from "./request_state.ts";
import type { Scheduler } from "./scheduler.ts";
import { TrtllmMetrics } from "./trtllm_metrics.ts";

/** What a worker counts, under `kvt_worker_` and under the names of trtllm-serve; docs/worker.md lists them. */
export class WorkerMetrics {
  readonly #metrics = new Metrics();
  readonly #trtllm: TrtllmMetrics;
  readonly #requests = this.#metrics.counter<"role" | "status">({
    name: "kvt_worker_requests_total",
    help: "Answered requests by role and HTTP status; 499: the client left.",
    labels: ["role", "status"],
  });
  readonly #states = this.#metrics.counter<"from" | "to">({
    name: "kvt_worker_request_state_changes_total",
    help: "Edges of the request state machine that were taken.",
    labels: ["from", "to"],
  });
  readonly #tokens = this.#metrics.counter<"kind">({
    name: "kvt_worker_tokens_total",
    help: "Prompt tokens, those of them found in the prefix cache, and output tokens of answered requests.",
    labels: ["kind"],
  });
  readonly #phases = this.#metrics.histogram<"phase">({
    name: "kvt_worker_phase_seconds",
    help: "Time of answered requests in the queue, in prefill, waiting for the KV transfer, and decoding.",
    labels: ["phase"],
    buckets: latencyBuckets,
  });
  readonly #transferBytes = this.#metrics.counter<"direction">({
    name: "kvt_worker_transfer_bytes_total",
    help: "KV bytes of completed transfers.",
    labels: ["direction"],
  });
  readonly #transferTime = this.#metrics.histogram<"direction">({
    name: "kvt_worker_transfer_seconds",
    help: "Completed transfers, from the call to the end.",
    labels: ["direction"],
    buckets: shortLatencyBuckets,
  });
  readonly #transferPhases = this.#metrics.histogram<"phase">({
    name: "kvt_worker_transfer_phase_seconds",
    help: "Completed receives: waiting for a turn, for a connection, for the sender; moving; verifying.",
    labels: ["phase"],
    buckets: shortLatencyBuckets,
  });
  readonly #transferSizes = this.#metrics.histogram<"direction">({
    name: "kvt_worker_transfer_size_bytes",
    help: "KV bytes of each completed transfer.",
    labels: ["direction"],
    buckets: sizeBuckets,
  });
  readonly #transferParts = this.#metrics.counter<"unit">({
    name: "kvt_worker_transfer_parts_total",
    help: "Runs and pieces (contiguous copies) of completed receives, by which the path is judged.",
    labels: ["unit"],
  });
  readonly #pathTransfers = this.#metrics.counter<"direction" | "path">({
    name: "kvt_worker_path_transfers_total",
    help: "Completed transfers by the path that their bytes took; none: there was nothing to move.",
    labels: ["direction", "path"],
  });
  readonly #pathBytes = this.#metrics.counter<"direction" | "path">({
    name: "kvt_worker_path_bytes_total",
    help: "KV bytes of completed transfers by path.",
    labels: ["direction", "path"],
  });
  readonly #pathSeconds = this.#metrics.counter<"path">({
    name: "kvt_worker_path_moving_seconds_total",
    help: "Native time of copying in completed receives, by path.",
    labels: ["path"],
  });
  readonly #nixlParts = this.#metrics.counter<"path" | "unit">({
    name: "kvt_worker_nixl_parts_total",
    help: "Posts and NIXL descriptors of completed receives, as NIXL's telemetry counts them.",
    labels: ["path", "unit"],
  });
  readonly #nixlSeconds = this.#metrics.counter<"path" | "phase">({
    name: "kvt_worker_nixl_seconds_total",
    help: "NIXL's telemetry of completed receives: time in calls that post, and from each post to its end (posts overlap).",
    labels: ["path", "phase"],
  });
  readonly #freed = this.#metrics.histogram<"phase">({
    name: "kvt_worker_abandoned_to_free_seconds",
    help: "From the word that nobody wants a request any more (client left, abort, release) until its blocks are free, by its phase then.",
    labels: ["phase"],
    buckets: shortLatencyBuckets,
  });
  readonly #steps = this.#metrics.histogram({
    name: "kvt_worker_step_seconds",
    help: "Engine steps: one token of every decoding request and chunks of prompts.",
    buckets: latencyBuckets,
  });

  constructor(modelName: string) {
    this.#trtllm = new TrtllmMetrics(this.#metrics, modelName);
  }

  watch(parts: {
    readonly scheduler: Scheduler;
    readonly transceiver: Transceiver;
    readonly kvEvents: KvEvents;
  }): void {
    const { scheduler, transceiver, kvEvents } = parts;
    this.#trtllm.watch(parts);
    this.#metrics.gauge<"state">({
      name: "kvt_worker_requests",
      help: "Requests now, by what they wait for or do.",
      labels: ["state"],
      read: (gauge) => {
        const { waiting, receiving, prefilling, decoding, offered } = scheduler.load;
        const counts = { waiting, receiving, prefilling, decoding, offered };
        for (const [state, count] of Object.entries(counts)) gauge.set({ state }, count);
      },
    });
    this.#metrics.gauge<"state">({
      name: "kvt_worker_blocks",
      help: "KV blocks now: in the pool, free, held by the prefix cache, pinned by offers, of these leased to a receiver, in quarantine.",
      labels: ["state"],
      read: (gauge) => {
        const { total, free, pinned, leased, quarantined } = transceiver.stats().blocks;
        const counts = { total, free, pinned, leased, quarantined, cached: scheduler.load.cachedBlocks };
        for (const [state, count] of Object.entries(counts)) gauge.set({ state }, count);
      },
    });
    this.#metrics.gauge({
      name: "kvt_worker_kv_events_dropped",
      help: "KV events since the start that nobody read in time; above 0 the reader of /kv_cache_events is too slow or gone.",
      read: (gauge) => gauge.set(kvEvents.dropped),
    });
    this.#watchTransfers(transceiver);
  }

  #watchTransfers(transceiver: Transceiver): void {
    this.#metrics.gauge({
      name: "kvt_worker_digest_mismatches",
      help: "Blocks since the start that arrived with another digest than their sender's; above 0 something is broken.",
      read: (gauge) => gauge.set(transceiver.stats().mismatches),
    });
    this.#watchNixl(transceiver);
    this.#metrics.gauge<"direction" | "state">({
      name: "kvt_worker_transfers_open",
      help: "Transfers now: offers, of these leased to a receiver; receives, of these waiting for a turn.",
      labels: ["direction", "state"],
      read: (gauge) => {
        const { sends, receives } = transceiver.stats();
        gauge.set({ direction: "send", state: "open" }, sends.open);
        gauge.set({ direction: "send", state: "leased" }, sends.leased);
        gauge.set({ direction: "receive", state: "open" }, receives.open);
        gauge.set({ direction: "receive", state: "waiting" }, receives.waiting);
      },
    });
    this.#metrics.gauge<"direction" | "outcome">({
      name: "kvt_worker_transfers_ended",
      help: "Transfers that have ended since the start, by outcome.",
      labels: ["direction", "outcome"],
      read: (gauge) => {
        const { sends, receives } = transceiver.stats();
        for (const [direction, { completed, failed, cancelled }] of Object.entries({
          send: sends,
          receive: receives,
        })) {
          for (const [outcome, count] of Object.entries({ completed, failed, cancelled })) {
            gauge.set({ direction, outcome }, count);
          }
        }
      },
    });
  }

  #watchNixl(transceiver: Transceiver): void {
    this.#metrics.gauge<"state">({
      name: "kvt_worker_nixl_agents",
      help:
        "NIXL agents: wedged now (they don't come back); since the start, replaced for that, and retired in good order; exhausted 1: none is " +
        "left, and the worker ends.",
      labels: ["state"],
      read: (gauge) => {
        const { nixl } = transceiver.stats();
        if (nixl === null) return;
        gauge.set({ state: "wedged" }, nixl.wedged.length);
        gauge.set({ state: "replaced" }, nixl.replaced);
        gauge.set({ state: "retired" }, nixl.retired);
        gauge.set({ state: "exhausted" }, nixl.exhausted ? 1 : 0);
      },
    });
    this.#metrics.gauge<"memory" | "agents">({
      name: "kvt_worker_nixl_quarantined_bytes",
      help: "Memory that reads which were given up may still touch, of wedged agents (for good) and of the others.",
      labels: ["memory", "agents"],
      read: (gauge) => {
        const { nixl } = transceiver.stats();
        if (nixl === null) return;
        const sum = (of: "bytes" | "slotBytes"): number => nixl.wedged.reduce((total, one) => total + one[of], 0);
        gauge.set({ memory: "blocks", agents: "wedged" }, sum("bytes"));
        gauge.set({ memory: "slots", agents: "wedged" }, sum("slotBytes"));
        gauge.set({ memory: "slots", agents: "others" }, nixl.quarantinedSlotBytes);
      },
    });
  }

  changed({ from, to }: StateChange): void {
    this.#states.inc({ from, to });
  }

  freed(phase: DeparturePhase, ms: number): void {
    this.#freed.observe({ phase }, ms / 1000);
  }

  stepped(ms: number): void {
    this.#steps.observe(ms / 1000);
  }

  answered(record: RequestRecord): void {
    this.#requests.inc({ role: record.role, status: String(record.status) });
    if (record.status !== 200) return;
    this.#tokens.inc({ kind: "prompt" }, record.prompt_tokens);
    this.#tokens.inc({ kind: "cached" }, record.cached_tokens);
    this.#tokens.inc({ kind: "output" }, record.output_tokens);
    this.#phases.observe({ phase: "queue" }, record.queue_ms / 1000);
    if (record.role !== "generation") this.#phases.observe({ phase: "prefill" }, record.prefill_ms / 1000);
    else this.#phases.observe({ phase: "transfer" }, record.transfer_ms / 1000);
    if (record.role !== "context") this.#phases.observe({ phase: "decode" }, record.decode_ms / 1000);
  }

  served(entry: PerfEntry): void {
    this.#trtllm.served(entry);
  }

  transferred(record: TransferRecord): void {
    const { direction, bytes, ms } = record;
    this.#transferBytes.inc({ direction }, bytes);
    this.#transferSizes.observe({ direction }, bytes);
    this.#transferTime.observe({ direction }, ms / 1000);
    const { path } = record;
    this.#pathTransfers.inc({ direction, path });
    this.#pathBytes.inc({ direction, path }, bytes);
    if (direction === "send") return;
    this.#moved(record);
    const { queue_ms: queue, connect_ms: connect, wait_ms: wait, moving_ms: move, verify_ms: verify } = record;
    for (const [phase, phaseMs] of Object.entries({ queue, connect, wait, move, verify })) {
      this.#transferPhases.observe({ phase }, phaseMs / 1000);
    }
    this.#transferParts.inc({ unit: "run" }, record.runs);
    this.#transferParts.inc({ unit: "piece" }, record.pieces);
  }

  #moved({ path, moving_ms: movingMs, nixl }: TransferRecord): void {
    this.#pathSeconds.inc({ path }, movingMs / 1000);
    if (nixl === undefined) return;
    this.#nixlParts.inc({ path, unit: "post" }, nixl.posts);
    this.#nixlParts.inc({ path, unit: "descriptor" }, nixl.descriptors);
    this.#nixlSeconds.inc({ path, phase: "post" }, nixl.post_ms / 1000);
    this.#nixlSeconds.inc({ path, phase: "transfer" }, nixl.transfer_ms / 1000);
  }

  text(): Promise<string> {
    return this.#metrics.text();
  }
}
