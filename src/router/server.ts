import { setMaxListeners } from "node:events";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Clock } from "../clock.ts";
import type { RouterSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import { createLogger, type Logger } from "../observability/log.ts";
import { metricsContentType } from "../observability/metrics.ts";
import { createFront } from "../openai/http_front.ts";
import { stringifyList } from "../openai/index.ts";
import { packageVersion } from "../version.ts";
import { Abandon } from "./abandon.ts";
import { Admission, type AdmissionLimits } from "./admission.ts";
import { CallServer } from "./call_server.ts";
import { clusterInfo } from "./cluster_info.ts";
import { Fleet } from "./fleet.ts";
import { HopRetries, type HopRetriesOptions } from "./hop_retries.ts";
import { HopRunner } from "./hop_runner.ts";
import { PerfMetrics } from "./perf_metrics.ts";
import { defaultProbeTimes, type ProbeTimes } from "./prober.ts";
import { RequestIds } from "./request_ids.ts";
import { callPaths } from "./routed_call.ts";
import { RouterMetrics } from "./router_metrics.ts";
import { Aggregated } from "./upstreams/aggregated.ts";
import { ContextFirst } from "./upstreams/context_first.ts";
import { GenerationFirst } from "./upstreams/generation_first.ts";

export interface RouterServer {
  /** `http://host:port` */
  readonly url: string;
  readonly port: number;
  /** Resolves when all listed workers are ready; rejects with START_TIMEOUT (exit code 3), or CLOSED. */
  readonly ready: Promise<void>;
  /** Takes no new requests from now on (503) and resolves when none is in flight. */
  drained(): Promise<void>;
  /** Drains for at most `drainMs` (default: the request timeout), ends what is left with an error, and lets go of everything. */
  close(options?: { readonly drainMs?: number }): Promise<void>;
}

/** What tests and embedders may replace. */
export interface RouterHooks {
  readonly log?: Logger;
  readonly clock?: Clock;
  readonly probe?: Partial<ProbeTimes>;
  /** Between two tries of one hop. */
  readonly pause?: HopRetriesOptions["pause"];
  readonly admission?: Partial<AdmissionLimits>;
  /** Null: send no ids, so that each context worker gives its own (context-first only). */
  readonly ids?: Pick<RequestIds, "next"> | null;
}

const LAST_ANSWERS_MS = 500;
const REQUESTS_MAX = 4_096;
/** Bodies in flight, as a multiple of the largest one. */
const BODIES_MAX = 8;

/** CLOCK_MONOTONIC: stands still while the machine sleeps, as the timers of Node do. */
const monotonicClock: Clock = { nowMs: () => performance.now() };

/**
 * Starts the router of `kvt disaggregated`: listens first, then looks for its workers and answers 503 until they are there.
 * @throws KvError BIND_FAILED
 */
export async function startRouter(settings: RouterSettings, hooks: RouterHooks = {}): Promise<RouterServer> {
  const log = hooks.log ?? createLogger({ name: "router", level: settings.logLevel });
  const clock = hooks.clock ?? monotonicClock;
  const metrics = new RouterMetrics();
  const { maxRetries } = settings;
  const fleet = new Fleet({
    context: settings.context,
    generation: settings.generation,
    scheduleStyle: settings.scheduleStyle,
    clock,
    log,
    probe: { ...defaultProbeTimes, ...hooks.probe },
    startTimeoutMs: settings.serverStartTimeoutMs,
  });
  const admission = new Admission({
    requests: REQUESTS_MAX,
    bodyBytes: BODIES_MAX * settings.maxBodyBytes,
    ...hooks.admission,
  });
  metrics.watch({ fleet, inFlight: () => admission.inFlight });
  const abandon = new Abandon({ log, metrics, authToken: settings.authToken });
  const parts = {
    clock,
    fleet,
    abandon,
    maxRetries,
    ids: hooks.ids === undefined ? new RequestIds({ node: settings.nodeId }) : hooks.ids,
    retries: new HopRetries({ fleet, log, maxRetries, ...(hooks.pause && { pause: hooks.pause }) }),
    hops: new HopRunner({
      clock,
      metrics,
      silenceMs: settings.requestTimeoutMs,
      answerBytesMax: settings.maxBodyBytes,
      onSuspect: (worker) => fleet.suspect(worker),
    }),
  };
  const aggregated = new Aggregated(parts);
  const pairs =
    settings.scheduleStyle === "generation_first"
      ? new GenerationFirst({ ...parts, ids: parts.ids ?? new RequestIds({ node: settings.nodeId }) })
      : new ContextFirst(parts);
  const perf = new PerfMetrics({ max: settings.perfMetricsMaxRequests, workers: fleet.workers, log });
  const closing = new AbortController();
  // Every request in flight listens to it.
  setMaxListeners(0, closing.signal);
  const calls = new CallServer({
    settings,
    log,
    clock,
    metrics,
    fleet,
    admission,
    perf,
    closing: closing.signal,
    chooseProtocol: () => (fleet.isAggregated ? aggregated : pairs),
  });

  const front = createFront({
    bodyBytesMax: settings.maxBodyBytes,
    requestReadMs: settings.requestTimeoutMs,
    onError: (error, answer) => {
      if (answer.status === 500) log.error({ err: error, requestId: answer.body.error.request_id }, "internal defect");
    },
  });
  let isDraining = false;
  for (const kind of ["completion", "chat"] as const) {
    front.post(callPaths[kind], {
      // Before the body is read: a router that can't serve should not take in megabytes first.
      onRequest: async (request: FastifyRequest, reply: FastifyReply) => {
        if (isDraining) throw new KvError("DRAINING", { what: "the router" });
        calls.admit(request, reply);
      },
      errorHandler: (error, request, reply) => {
        front.errorHandler(error, request, reply);
        metrics.answered(reply.statusCode);
      },
      handler: (request, reply) => {
        reply.hijack();
        calls.serve(kind, request, reply);
      },
    });
  }
  front.get("/health", async (_request, reply) => {
    const isReady = fleet.isReady && !isDraining;
    const reason = isDraining ? "draining" : fleet.isReady ? undefined : fleet.unreadyReason;
    if (!isReady) reply.code(503).header("retry-after", "1");
    return { status: isReady ? "ready" : "not_ready", ...(reason !== undefined && { reason }) };
  });
  front.get("/health/live", async () => ({ status: "alive" }));
  front.get("/version", async () => ({ version: packageVersion() }));
  front.get("/cluster_info", async () => clusterInfo(fleet, clock.nowMs()));
  front.get("/v1/models", async () => ({ object: "list", data: fleet.models }));
  front.get("/perf_metrics", async (_request, reply) =>
    reply.type("application/json; charset=utf-8").send(stringifyList(await perf.read())),
  );
  for (const path of ["/metrics", "/prometheus/metrics"]) {
    front.get(path, async (_request, reply) => reply.type(metricsContentType).send(await metrics.text()));
  }

  const { host } = settings;
  try {
    await front.listen({ host, port: settings.port });
  } catch (error) {
    await front.close();
    await fleet.close();
    const why = error instanceof Error ? error.message : String(error);
    throw new KvError("BIND_FAILED", { host, port: settings.port, why }, { cause: error });
  }
  const { port } = front.server.address() as AddressInfo;
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
  log.info(
    { url, context: fleet.group("context").length, generation: fleet.group("generation").length },
    "router listens",
  );

  const ready = fleet.start(closing.signal).then(() => {
    log.info({ url, workers: fleet.workers.length }, "all workers are ready");
  });
  // Whoever needs it awaits `ready`; for the others a start that failed is one log line, and 503 from then on.
  ready.catch((error: unknown) => {
    if (!closing.signal.aborted)
      log.error({ why: error instanceof Error ? error.message : String(error) }, "start failed");
  });
  const summary = startSummary(settings.metricsLogIntervalMs, log, metrics);

  const drained = async (): Promise<void> => {
    isDraining = true;
    await admission.empty();
  };
  let closed: Promise<void> | undefined;
  const close = async (drainMs: number): Promise<void> => {
    const isEmpty = drained();
    await within(isEmpty, drainMs);
    closing.abort(new KvError("CLOSED", { what: "the router" }));
    clearInterval(summary);
    // What was cut off is answered within a turn; clients that still send their bodies are not waited for.
    await within(isEmpty, LAST_ANSWERS_MS);
    await abandon.settled();
    await front.close();
    await fleet.close();
    log.info({ url }, "router closed");
  };
  return {
    url,
    port,
    ready,
    drained,
    close: (options = {}) => {
      closed ??= close(options.drainMs ?? settings.requestTimeoutMs);
      return closed;
    },
  };
}

/** Waits for the end of something, but not longer than `ms`. */
async function within(work: Promise<void>, ms: number): Promise<void> {
  const limit = new AbortController();
  await Promise.race([work, sleep(ms, undefined, { signal: limit.signal }).catch(() => undefined)]);
  limit.abort();
}

function startSummary(intervalMs: number, log: Logger, metrics: RouterMetrics): NodeJS.Timeout | undefined {
  if (intervalMs === 0) return undefined;
  return setInterval(async () => {
    const counts = (await metrics.text()).split("\n").filter((line) => /^\w+_requests |^total_responses /.test(line));
    log.info(Object.fromEntries(counts.map((line) => line.split(" "))), "metrics");
  }, intervalMs).unref();
}
