import type { AddressInfo } from "node:net";
import type { FastifyInstance } from "fastify";
import type { WorkerSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import { createLogger, type Logger } from "../observability/log.ts";
import { createFront } from "../openai/http_front.ts";
import type { TransceiverHooks } from "../transceiver/transceiver_parts.ts";
import { Completions } from "./completions.ts";
import type { DeparturePhase } from "./departures.ts";
import { GREEDY } from "./engine.ts";
import { addInfoRoutes } from "./info_routes.ts";
import { addKvRoutes } from "./kv_routes.ts";
import { PathProbes } from "./path_probes.ts";
import { PerfMetrics } from "./perf_metrics.ts";
import { Records, type RequestRecord, transferRecord } from "./records.ts";
import type { StateChange } from "./request_state.ts";
import { WorkerMetrics } from "./worker_metrics.ts";
import { buildWorker, probeSettingOf, type WorkerParts } from "./worker_parts.ts";

export interface WorkerServer {
  /** `http://host:port` */
  readonly url: string;
  readonly port: number;
  /** Resolves, if ever, with the sentence that says why this process can't serve any more; it still can be drained. */
  readonly unusable: Promise<string>;
  /** Takes no new requests from now on (503) and resolves when none is left and every offer has ended. */
  drained(): Promise<void>;
  /** Drains for at most `drainMs` (default 180 s), ends what is left, and lets go of everything. Idempotent. */
  close(options?: { readonly drainMs?: number }): Promise<void>;
}

/** What tests and embedders may replace. */
export interface WorkerHooks {
  readonly log?: Logger;
  /** How long a client may take to send its request: 408 afterwards. */
  readonly requestReadMs?: number;
  /** A client that reads nothing of its stream for this long is cut off. */
  readonly stallMs?: number;
  /** Each edge of each request, once. */
  readonly onChange?: (change: StateChange) => void;
  /** Each engine step, when it has ended. */
  readonly onStep?: () => void;
  /** Blocks of a request that nobody wanted any more are free. */
  readonly onFreed?: (phase: DeparturePhase, ms: number) => void;
  readonly transceiver?: TransceiverHooks;
}

const DRAIN_MS = 180_000;
const REQUEST_READ_MS = 60_000;
const STALL_MS = 60_000;
/** At close: what the last answers get to leave. */
const FLUSH_MS = 1_000;
/** Above the 10 s after which a router of TensorRT-LLM closes an idle connection, so that it never meets one that we just closed. */
const KEEP_ALIVE_MS = 15_000;

/**
 * Starts the worker of `kvt serve`: loads the model, reserves the KV pool, computes one token, then listens.
 * @throws KvError BIND_FAILED, MODEL_*, TOKENIZER_*, POOL_UNAVAILABLE
 */
export async function startWorker(settings: WorkerSettings, hooks: WorkerHooks = {}): Promise<WorkerServer> {
  const log = hooks.log ?? createLogger({ name: "worker", level: settings.logLevel });
  const metrics = new WorkerMetrics(settings.servedModelName);
  const records = new Records();
  const parts = await buildWorker(settings, log, {
    onChange: (change) => {
      metrics.changed(change);
      hooks.onChange?.(change);
      log.debug(change, "request state");
    },
    onStep: ({ ms }) => {
      metrics.stepped(ms);
      hooks.onStep?.();
    },
    onFreed: (phase, ms) => {
      metrics.freed(phase, ms);
      hooks.onFreed?.(phase, ms);
    },
    onTransfer: (request, direction, report) => {
      const record = transferRecord(request.spec.id, direction, report);
      records.add(record);
      metrics.transferred(record);
      log.debug(record, "transfer");
    },
    ...(hooks.transceiver && { transceiver: hooks.transceiver }),
  });
  const { scheduler, transceiver } = parts;
  metrics.watch(parts);
  let isDraining = false;
  const probe = (): Promise<void> => computeOneToken(parts);

  const front = createFront({
    bodyBytesMax: settings.maxBodyBytes,
    requestReadMs: hooks.requestReadMs ?? REQUEST_READ_MS,
    onError: (error, answer) => {
      if (answer.status === 500) log.error({ err: error, requestId: answer.body.error.request_id }, "internal defect");
    },
  });
  front.server.keepAliveTimeout = KEEP_ALIVE_MS;
  const perf = new PerfMetrics(settings.perfMetricsMaxRequests, parts.engine.geometry.tokensPerBlock);
  const completions = new Completions({
    scheduler,
    reader: parts.reader,
    contextIds: parts.contextIds,
    modelNames: [settings.servedModelName, settings.model],
    strictModel: settings.strictModel,
    maxSeqLen: parts.maxSeqLen,
    stallMs: hooks.stallMs ?? STALL_MS,
    onUnknownModel: (model) =>
      log.warn({ model, served: settings.servedModelName }, "another model name was asked for and is answered"),
    onServed: (entry) => {
      perf.add(entry);
      metrics.served(entry);
    },
    onAnswered: (record: RequestRecord) => {
      records.add(record);
      metrics.answered(record);
      log.info(record, "request");
    },
  });
  addCompletionRoutes(front, completions, () => isDraining);
  addInfoRoutes(front, { settings, parts, metrics, perf, isDraining: () => isDraining, probe });
  addKvRoutes(front, {
    parts,
    records,
    authToken: settings.authToken,
  });
  const probes = new PathProbes({ setting: probeSettingOf(settings), authToken: settings.authToken });
  probes.addRoutes(front);

  const { host } = settings;
  try {
    await probe();
    await front.listen({ host, port: settings.port });
  } catch (error) {
    await front.close();
    await parts.close();
    if (error instanceof KvError) throw error;
    const why = error instanceof Error ? error.message : String(error);
    throw new KvError("BIND_FAILED", { host, port: settings.port, why }, { cause: error });
  }
  const { port } = front.server.address() as AddressInfo;
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
  log.info(
    {
      url,
      model: settings.servedModelName,
      kvDtype: parts.engine.geometry.dtype,
      blocks: transceiver.pool.total,
      maxSeqLen: parts.maxSeqLen,
      instance: transceiver.instance,
    },
    "worker listens",
  );

  const drained = async (): Promise<void> => {
    isDraining = true;
    await scheduler.drain();
    await transceiver.drain();
  };
  const close = async (drainMs: number): Promise<void> => {
    await within(drained(), drainMs);
    await scheduler.close();
    await within(completions.settled(), FLUSH_MS);
    await probes.close();
    await front.close();
    await parts.close();
    log.info({ url }, "worker closed");
  };
  let closed: Promise<void> | undefined;
  return {
    url,
    port,
    unusable: transceiver.unusable,
    drained,
    close: (options = {}) => {
      closed ??= close(options.drainMs ?? DRAIN_MS);
      return closed;
    },
  };
}

function addCompletionRoutes(front: FastifyInstance, completions: Completions, isDraining: () => boolean): void {
  const paths = { completion: "/v1/completions", chat: "/v1/chat/completions" } as const;
  for (const kind of ["completion", "chat"] as const) {
    front.post(paths[kind], {
      // Before the body is read.
      onRequest: async () => {
        if (isDraining()) throw new KvError("DRAINING", { what: "this worker" });
      },
      handler: (request, reply) => completions.serve(kind, request, reply),
    });
  }
}

/** Through the same path as every request: a worker whose engine hangs does not come up. */
async function computeOneToken({ scheduler, reader }: WorkerParts): Promise<void> {
  const request = scheduler.submit({
    id: "probe",
    role: { kind: "aggregated" },
    prompt: Uint32Array.of(reader.tokenizer.bosId ?? 0),
    maxTokens: 1,
    minTokens: 0,
    sampling: GREEDY,
    stopTokens: new Map(),
    onToken: () => null,
    isProbe: true,
  });
  await request.done;
}

/** Resolves when `work` has ended or `ms` have passed. */
async function within(work: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([work, limit]).finally(() => clearTimeout(timer));
}
