import { freemem } from "node:os";
import type { WorkerSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import { blockBytesOf } from "../kv/layout.ts";
import { type ParallelSizes, placeOf, ranksOf, shareOf } from "../kv/ranks.ts";
import type { Logger } from "../observability/log.ts";
import { KvInstance } from "../transceiver/instance.ts";
import type { ProbeSetting } from "../transceiver/path_probe.ts";
import type { TransceiverHooks } from "../transceiver/transceiver_parts.ts";
import { BY_MAX_NUM_TOKENS } from "./admission.ts";
import { ContextIds } from "./context_ids.ts";
import type { EngineGeometry } from "./engine.ts";
import { layoutOf, rankPools } from "./engine_pools.ts";
import { KvEvents } from "./kv_events.ts";
import { ReferenceEngine } from "./reference_engine.ts";
import { Scheduler } from "./scheduler.ts";
import type { SchedulerOptions } from "./scheduler_options.ts";
import { ChatTemplate, type PromptReader, Tokenizer } from "./text/index.ts";

/** What a worker is made of, in the order in which it is built; `close` takes it down the other way round. */
export interface WorkerParts {
  readonly engine: ReferenceEngine;
  readonly transceiver: KvInstance;
  readonly scheduler: Scheduler;
  readonly kvEvents: KvEvents;
  readonly reader: PromptReader;
  readonly contextIds: ContextIds;
  readonly maxSeqLen: number;
  close(): Promise<void>;
}

type PartHooks = Pick<SchedulerOptions, "onChange" | "onFreed" | "onStep" | "onTransfer"> & {
  readonly transceiver?: TransceiverHooks;
};

/** Without `max_tokens` a pool is never larger: several workers share a machine, and the pool is reserved, not promised. */
const DEFAULT_POOL_BYTES_MAX = 1 << 30;
/** See docs/decisions/019-prefill-in-small-steps.md. */
const STEP_TOKENS_MAX = 256;
/** See docs/decisions/030-generation-first.md. */
const EARLY_SHARE = 0.25;
const QUEUE_TIMEOUT_MS = 180_000;
/** Long enough for a peer that is about to fetch, short beside any timeout. */
const GIVE_WAY_MS = 1_000;
const STEP_LIMIT_MS = 60_000;

/** @throws KvError of the engine (MODEL_*), the tokenizer (TOKENIZER_*) or the transceiver (POOL_UNAVAILABLE, ...) */
export async function buildWorker(settings: WorkerSettings, log: Logger, hooks: PartHooks): Promise<WorkerParts> {
  const { kvCache } = settings;
  const undo: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) await step();
  };
  try {
    const engine = await ReferenceEngine.load(settings.model, {
      kv: kvCache.dtype,
      tokensPerBlock: kvCache.tokensPerBlock,
    });
    undo.push(() => engine.close());
    const { geometry } = engine;
    const tokenizer = Tokenizer.fromMetadata(engine.metadata);
    const template =
      settings.chatTemplate === null
        ? ChatTemplate.fromMetadata(engine.metadata, tokenizer)
        : new ChatTemplate(settings.chatTemplate, tokenizer);
    const maxSeqLen = seqLenOf(settings, geometry);
    const blocks = poolBlocks(settings, geometry, maxSeqLen);
    const transceiver = await KvInstance.open(transceiverOptions(settings, geometry, blocks), hooks.transceiver);
    undo.push(() => transceiver.close());
    engine.attachRanks(rankPools(transceiver), blocks);
    const lifted = settings.enableChunkedPrefill || settings.maxNumTokens >= maxSeqLen;
    const limit = lifted
      ? { tokens: maxSeqLen - 1, name: "max_seq_len less one output token" }
      : { tokens: settings.maxNumTokens, name: BY_MAX_NUM_TOKENS };
    const zeroes = process.env.KVT_TEST_ZERO_KV === "1";
    const kvEvents = new KvEvents({ limit: kvCache.eventBufferMaxSize, blocks, windowSize: maxSeqLen });
    const scheduler = new Scheduler({
      engine,
      pool: transceiver.pool,
      transfers: settings.transceiver === null ? null : transceiver,
      limits: {
        maxBatchSize: settings.maxBatchSize,
        stepTokens: Math.min(settings.maxNumTokens, STEP_TOKENS_MAX),
        maxPromptTokens: limit.tokens,
        maxQueueSize: settings.maxQueueSize,
        queueTimeoutMs: QUEUE_TIMEOUT_MS,
        offerMs: settings.transceiver?.kvTransferTimeoutMs ?? QUEUE_TIMEOUT_MS,
        maxSeqLen,
        stepLimitMs: STEP_LIMIT_MS,
        maxOffers: settings.transfer.maxOffers,
        bothRoles: settings.role === null,
        earlyShare: EARLY_SHARE,
        giveWayMs: GIVE_WAY_MS,
      },
      // Spoiled blocks must not be reused.
      reusePrefixes: kvCache.enableBlockReuse && !zeroes,
      reuseParts: kvCache.enablePartialReuse,
      layerwise: settings.transfer.layerwise,
      nowMs: () => performance.now(),
      cacheListener: kvEvents,
      ...hooks,
      ...(zeroes
        ? {
            onReceived: ({ ids }) => {
              for (const { memory, blockBytes } of transceiver.ranks) {
                for (const id of ids) new Uint8Array(memory, id * blockBytes, blockBytes).fill(0);
              }
            },
          }
        : {}),
    });
    undo.push(() => scheduler.close());
    if (zeroes) log.warn("KVT_TEST_ZERO_KV is set: received KV is zeroed, answers will be wrong");
    return {
      engine,
      transceiver,
      scheduler,
      kvEvents,
      reader: { model: settings.servedModelName, tokenizer, template, limit },
      contextIds: new ContextIds(firstContextId()),
      maxSeqLen,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Test hook: the first `ctx_request_id` that this worker issues. */
function firstContextId(): { readonly first?: bigint } {
  const text = process.env.KVT_TEST_CTX_REQUEST_ID;
  return text === undefined ? {} : { first: BigInt(text) };
}

function seqLenOf({ maxSeqLen }: WorkerSettings, geometry: EngineGeometry): number {
  if (maxSeqLen === null) return geometry.maxSeqLen;
  if (maxSeqLen <= geometry.maxSeqLen) return maxSeqLen;
  throw new KvError("INVALID_ARGUMENT", {
    what: `max_seq_len ${maxSeqLen}`,
    why: `the model was made for ${geometry.maxSeqLen} tokens`,
  });
}

function poolBlocks(settings: WorkerSettings, geometry: EngineGeometry, maxSeqLen: number): number {
  const { maxTokens, freeMemoryFraction } = settings.kvCache;
  const { tokensPerBlock } = geometry;
  const sizes = sizesOf(settings);
  const layout = layoutOf(geometry);
  // Of all ranks together: what several keep is there several times.
  const blockBytes = ranksOf(sizes)
    .map((rank) => blockBytesOf(layout, shareOf(layout, placeOf(rank, sizes))))
    .reduce((sum, bytes) => sum + bytes, 0);
  if (maxTokens !== null) return Math.ceil(maxTokens / tokensPerBlock);
  const useful = settings.maxBatchSize * Math.ceil(maxSeqLen / tokensPerBlock);
  const bytes = Math.min(freemem() * freeMemoryFraction, DEFAULT_POOL_BYTES_MAX);
  return Math.max(1, Math.min(useful, Math.floor(bytes / blockBytes)));
}

const sizesOf = ({ tensorParallelSize, pipelineParallelSize, ppPartition }: WorkerSettings): ParallelSizes => ({
  tpSize: tensorParallelSize,
  ppSize: pipelineParallelSize,
  ...(ppPartition === null ? {} : { pipeline: ppPartition }),
});

/** How this worker reaches peers, for a probe of its paths; null: it has no transceiver. */
export function probeSettingOf(settings: WorkerSettings): ProbeSetting | null {
  const { transceiver, transfer } = settings;
  if (transceiver === null) return null;
  return {
    config: { backend: transceiver.backend },
    path: transfer.path,
    sameHost: transfer.sameHost,
    ...reachOf(settings),
  };
}

/** Control endpoint, secret and socket directory. */
function reachOf({ control, authToken, socketDir }: WorkerSettings) {
  const { host, port, tls } = control;
  const secure =
    tls === null ? {} : { tls: { cert: tls.cert, key: tls.key, ...(tls.ca === null ? {} : { ca: tls.ca }) } };
  return {
    listen: { host, port, ...secure },
    ...(authToken === null ? {} : { authToken }),
    ...(socketDir === null ? {} : { socketDir }),
  };
}

function transceiverOptions(settings: WorkerSettings, geometry: EngineGeometry, blocks: number) {
  const { transceiver, lease } = settings;
  return {
    config:
      transceiver === null
        ? {}
        : {
            backend: transceiver.backend,
            max_tokens_in_buffer: transceiver.maxTokensInBuffer,
            kv_transfer_timeout_ms: transceiver.kvTransferTimeoutMs,
            kv_transfer_sender_future_timeout_ms: transceiver.kvTransferSenderFutureTimeoutMs,
          },
    layout: layoutOf(geometry),
    ...sizesOf(settings),
    pool: { memory: "host" as const, blocks },
    lease,
    verify: settings.transfer.verify,
    path: transceiver === null ? ("shared_memory" as const) : settings.transfer.path,
    sameHost: settings.transfer.sameHost,
    maxOffers: settings.transfer.maxOffers,
    // What counts transfers elsewhere may be larger.
    stagingSlots: Math.min(settings.transfer.stagingSlots, 1024),
    maxConcurrentPulls: settings.transfer.maxReceives,
    maxConcurrentPullsPerPeer: settings.transfer.maxReceivesPerPeer,
    maxConcurrentSends: settings.transfer.maxSendsPerPeer,
    ...reachOf(settings),
  };
}
