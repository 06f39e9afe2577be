import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { WorkerSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import { metricsContentType } from "../observability/metrics.ts";
import { parseBody, parseRequest, stringifyList } from "../openai/index.ts";
import { packageVersion } from "../version.ts";
import type { PerfMetrics } from "./perf_metrics.ts";
import { KV_CACHE_HASH_ALGO } from "./prefix_keys.ts";
import type { WorkerMetrics } from "./worker_metrics.ts";
import type { WorkerParts } from "./worker_parts.ts";

/** Version of the contract between our workers and routers (system.md S2). */
export const KVT_PROTOCOL = 1;

/** How long an offer lives without a pull when `kv_transfer_timeout_ms` is null. */
const OFFER_MS_WITHOUT_TIMEOUT = 60_000;

export interface InfoOptions {
  readonly settings: WorkerSettings;
  readonly parts: WorkerParts;
  readonly metrics: WorkerMetrics;
  readonly perf: PerfMetrics;
  readonly isDraining: () => boolean;
  /** Computes one token, to show that the engine answers. */
  readonly probe: () => Promise<void>;
}

const Offset = z.looseObject({ offset: z.number() });

const withheld: readonly (readonly [method: "GET" | "POST", path: string, remedy: string])[] = [
  ["POST", "/v1/responses", "use /v1/chat/completions"],
  ["POST", "/release_memory", "stop the worker to free its memory"],
  ["POST", "/resume_memory", "start the worker again"],
  ["POST", "/update_weights", "start a worker with the new model file"],
];

/** Everything that says something about this worker and changes nothing (system.md S119). */
export function addInfoRoutes(front: FastifyInstance, options: InfoOptions): void {
  const { settings, parts, metrics, perf } = options;
  const createdS = Math.floor(Date.now() / 1000);
  const nowS = (): number => performance.now() / 1000;
  let offsetS = 0;

  front.get("/health", async (_request, reply) => {
    const reasons = unhealthyReasons(options);
    const degraded = [parts.transceiver.paths.degraded ?? [], parts.transceiver.health().reasons].flat().join("; ");
    if (reasons.length === 0) return { status: "ok", ...(degraded === "" ? {} : { degraded }) };
    reply.code(503).header("retry-after", "1");
    return { status: options.isDraining() ? "draining" : "unhealthy", reasons };
  });
  front.get("/health/live", async () => ({ status: "alive" }));
  front.get("/health_generate", async () => {
    await options.probe();
    return { status: "ok" };
  });
  front.get("/version", async () => ({ version: packageVersion() }));
  front.get("/v1/models", async () => ({
    object: "list",
    data: [
      {
        id: settings.servedModelName,
        object: "model",
        created: createdS,
        owned_by: "kv-transceiver",
        max_model_len: parts.maxSeqLen,
      },
    ],
  }));
  front.get("/server_info", async () => serverInfo(options));
  front.get("/steady_clock_offset", async () => {
    const receivedS = nowS() + offsetS;
    return { receive_ts: receivedS, transmit_ts: nowS() + offsetS };
  });
  front.post("/steady_clock_offset", async (request) => {
    offsetS = parseRequest(Offset, parseBody(request.body as Uint8Array)).offset;
    return { offset: offsetS };
  });
  front.get("/perf_metrics", async (_request, reply) =>
    reply.type("application/json; charset=utf-8").send(stringifyList(perf.drain(offsetS))),
  );
  front.post("/kv_cache_events", async (_request, reply) => {
    const events = parts.kvEvents.drain(parts.scheduler.cached);
    return reply.type("application/json; charset=utf-8").send(stringifyList(events));
  });
  front.get("/prometheus/metrics", async (_request, reply) =>
    reply.type(metricsContentType).send(await metrics.text()),
  );
  front.get("/metrics", async (request, reply) =>
    request.headers.accept?.includes("application/json") === true
      ? iterationStatistics(parts)
      : reply.type(metricsContentType).send(await metrics.text()),
  );
  for (const [method, path, remedy] of withheld) {
    front.route({
      method,
      url: path,
      handler: () => {
        throw new KvError("NOT_PROVIDED", { what: `${method} ${path}`, why: "this worker does not have it", remedy });
      },
    });
  }
}

function unhealthyReasons({ parts, isDraining }: InfoOptions): readonly string[] {
  const transceiver = parts.transceiver.health();
  return [
    ...(isDraining() ? ["the worker is draining"] : []),
    ...parts.scheduler.problems,
    ...(transceiver.status === "unhealthy" ? transceiver.reasons : []),
  ];
}

function serverInfo({ settings, parts }: InfoOptions) {
  const { geometry } = parts.engine;
  const { tpSize, ppSize, pipeline } = parts.transceiver.sizes;
  const { transceiver } = settings;
  return {
    kvt_protocol: KVT_PROTOCOL,
    version: packageVersion(),
    engine: "reference",
    epoch: parts.transceiver.epoch,
    instance: parts.transceiver.instance,
    role: settings.role,
    model: settings.servedModelName,
    tokens_per_block: geometry.tokensPerBlock,
    kv_cache_hash_algo: KV_CACHE_HASH_ALGO,
    geometry: {
      arch: geometry.arch,
      layers: geometry.layers,
      kv_heads: geometry.kvHeads,
      head_dim: geometry.headDim,
      dtype: geometry.dtype,
      tokens_per_block: geometry.tokensPerBlock,
      layout: geometry.layout,
      tp: settings.tensorParallelSize,
      pp: settings.pipelineParallelSize,
      cp: 1,
      dp: 1,
    },
    // Flat, so that a router can say which field of two workers differs before anything is computed.
    kv_layout: transceiver === null ? null : { ...parts.transceiver.layout, tpSize, ppSize, pipeline },
    vector_level: geometry.vectorLevel,
    kv_pool: parts.transceiver.stats().memory,
    max_seq_len: parts.maxSeqLen,
    max_num_tokens: settings.maxNumTokens,
    max_batch_size: settings.maxBatchSize,
    // A router that has shown token 0 by itself may leave that event out.
    first_event: "first_token",
    transports: transceiver === null ? [] : parts.transceiver.paths.names,
    degraded: parts.transceiver.paths.degraded,
    transceiver_runtime: transceiver?.transceiverRuntime ?? null,
    offer_ms: transceiver === null ? null : (transceiver.kvTransferTimeoutMs ?? OFFER_MS_WITHOUT_TIMEOUT),
    // What a generation worker must be told to ask here before there is an offer.
    disaggregated_params:
      transceiver === null ? {} : { ctx_dp_rank: null, ctx_info_endpoint: parts.transceiver.infoEndpoints },
  };
}

/** The list that trtllm-serve gives at /metrics: here always the one current state. */
function iterationStatistics({ scheduler, transceiver }: WorkerParts) {
  const { total, free } = transceiver.stats().blocks;
  const { waiting, prefilling, decoding, receiving } = scheduler.load;
  return [
    {
      numActiveRequests: prefilling + decoding + receiving,
      numQueuedRequests: waiting,
      kvCacheStats: { maxNumBlocks: total, freeNumBlocks: free, usedNumBlocks: total - free },
    },
  ];
}
