import type { FastifyReply, FastifyRequest } from "fastify";
import type { Clock } from "../clock.ts";
import type { RouterSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import type { Logger } from "../observability/log.ts";
import { type ErrorAnswer, errorBody, type RoutedRequest } from "../openai/index.ts";
import type { Admission, Ticket } from "./admission.ts";
import { ClientAnswer } from "./client_answer.ts";
import type { Fleet } from "./fleet.ts";
import { HopFailure } from "./hop_failure.ts";
import { joinSignals } from "./joined_signal.ts";
import type { PerfMetrics } from "./perf_metrics.ts";
import { type CallKind, type CallTrace, type RoutedCall, readClientBody } from "./routed_call.ts";
import type { RouterMetrics } from "./router_metrics.ts";
import type { UpstreamProtocol } from "./upstream.ts";

export interface CallServerOptions {
  readonly settings: RouterSettings;
  readonly log: Logger;
  readonly clock: Clock;
  readonly metrics: RouterMetrics;
  readonly fleet: Fleet;
  readonly admission: Admission;
  readonly perf: Pick<PerfMetrics, "answered">;
  /** Fires when the router lets go of everything. */
  readonly closing: AbortSignal;
  readonly chooseProtocol: () => UpstreamProtocol;
}

/** Of a client's headers both hops get these: they tie the workers' traces to the client's. */
const passedHeaders: readonly string[] = ["traceparent", "tracestate"];

/** Takes one client's request from admission to the last byte of its answer, whatever happens on the way. */
export class CallServer {
  readonly #options: CallServerOptions;
  readonly #tickets = new WeakMap<FastifyRequest, Ticket>();
  #warnedAboutModel = false;

  constructor(options: CallServerOptions) {
    this.#options = options;
  }

  /** Before the body is read. @throws KvError CLUSTER_NOT_READY, TOO_MANY_REQUESTS */
  admit(request: FastifyRequest, reply: FastifyReply): void {
    const { fleet, admission, metrics } = this.#options;
    metrics.requests.inc();
    if (!fleet.isReady) throw new KvError("CLUSTER_NOT_READY", { why: fleet.unreadyReason });
    const announced = Number(request.headers["content-length"] ?? 0);
    const ticket = admission.enter(request.id, Number.isSafeInteger(announced) ? announced : 0);
    this.#tickets.set(request, ticket);
    // Closing comes once and last, also when the client leaves while its body is read.
    reply.raw.once("close", () => ticket.leave());
  }

  /** Never rejects: every failure is an answer, a log line, or a defect that is logged as one. */
  serve(kind: CallKind, request: FastifyRequest, reply: FastifyReply): void {
    const { settings, clock, closing } = this.#options;
    const answer = new ClientAnswer(reply.raw, { requestId: request.id, stallMs: settings.requestTimeoutMs });
    const deadline = new AbortController();
    const timer = setTimeout(
      () => deadline.abort(new KvError("REQUEST_TIMEOUT", { ms: settings.requestTimeoutMs })),
      settings.requestTimeoutMs,
    );
    const trace: CallTrace = { arrivedMs: clock.nowMs(), contextTries: 0, generationTries: 0 };
    answer.watch({
      firstByte: () => {
        trace.firstByteMs = clock.nowMs();
      },
      begun: () => {
        clearTimeout(timer);
        trace.begunMs = clock.nowMs();
      },
    });
    const limit = joinSignals([answer.gone, deadline.signal, closing]);
    void this.#run(kind, request, answer, limit.signal, trace).finally(() => {
      clearTimeout(timer);
      limit.dispose();
    });
  }

  async #run(
    kind: CallKind,
    request: FastifyRequest,
    answer: ClientAnswer,
    signal: AbortSignal,
    trace: CallTrace,
  ): Promise<void> {
    const { settings, metrics, chooseProtocol } = this.#options;
    let call: RoutedCall | undefined;
    try {
      const bytes = request.body instanceof Buffer ? request.body : Buffer.alloc(0);
      const ticket = this.#tickets.get(request);
      ticket?.bodyRead(bytes.length);
      const read = readClientBody(bytes, { kind, allowChatTemplate: settings.allowRequestChatTemplate });
      (read.request.stream === true ? metrics.streams : metrics.nonStreams).inc();
      this.#checkModel(read.request);
      call = {
        id: request.id,
        kind,
        ...read,
        headers: headersToPass(request),
        answer,
        signal,
        sharesId: () => ticket?.sharesId() ?? false,
        trace,
      };
      await chooseProtocol().serve(call);
      this.#options.perf.answered(trace, this.#options.clock.nowMs());
      this.#log(call, request, answer.status, undefined);
    } catch (error) {
      this.#fail(error, call, request, answer, trace);
    }
  }

  #fail(
    error: unknown,
    call: RoutedCall | undefined,
    request: FastifyRequest,
    answer: ClientAnswer,
    trace: CallTrace,
  ): void {
    const isGone = answer.gone.aborted;
    const reply = isGone ? errorBody(answer.gone.reason, { requestId: request.id }) : answerTo(error, request.id);
    if (!isGone) answer.fail(reply);
    const isDefect = reply.status === 500 && !(error instanceof KvError);
    if (isDefect) this.#options.log.error({ requestId: request.id, err: error }, "internal defect");
    this.#log(call ?? { trace }, request, reply.status, reply);
  }

  /** With one model behind the router any name means it, unless the router is strict (S123). @throws KvError MODEL_NOT_FOUND */
  #checkModel(request: RoutedRequest): void {
    const { fleet, log, settings } = this.#options;
    const { model } = request;
    const served = fleet.models.map(({ id }) => id);
    if (model === undefined || model === null || served.length === 0 || served.includes(model)) return;
    if (settings.strictModel || !fleet.servesOneModel) {
      throw new KvError("MODEL_NOT_FOUND", { model: model.slice(0, 128), served: served.join(", ") });
    }
    if (this.#warnedAboutModel) return;
    this.#warnedAboutModel = true;
    log.warn({ asked: model.slice(0, 128), served }, "requests name another model; answering with the served one");
  }

  #log(
    call: Pick<RoutedCall, "trace"> & Partial<RoutedCall>,
    request: FastifyRequest,
    status: number,
    failure: ErrorAnswer | undefined,
  ): void {
    const { log, clock, metrics } = this.#options;
    const { trace } = call;
    metrics.answered(status);
    if (trace.dispatchedMs !== undefined) metrics.queueLatency.observe((trace.dispatchedMs - trace.arrivedMs) / 1000);
    const fields = {
      event: "request",
      requestId: request.id,
      path: request.url,
      status,
      stream: call.request?.stream === true,
      ms: round(clock.nowMs() - trace.arrivedMs),
      ...(trace.firstByteMs !== undefined && { firstByteMs: round(trace.firstByteMs - trace.arrivedMs) }),
      ...(trace.contextWorker !== undefined && { context: trace.contextWorker, contextTries: trace.contextTries }),
      ...(trace.generationWorker !== undefined && {
        generation: trace.generationWorker,
        generationTries: trace.generationTries,
      }),
      ...(failure && { code: failure.body.error.code, why: failure.body.error.message.slice(0, 300) }),
    };
    if (status >= 500) log.warn(fields, "request failed");
    else log.info(fields, "request");
  }
}

const round = (ms: number): number => Math.round(ms * 100) / 100;

function answerTo(error: unknown, requestId: string): ErrorAnswer {
  if (error instanceof HopFailure) return error.toAnswer(requestId);
  return errorBody(error, { requestId });
}

function headersToPass(request: FastifyRequest): Record<string, string> {
  const passed: Record<string, string> = {};
  for (const name of passedHeaders) {
    const value = request.headers[name];
    if (typeof value === "string") passed[name] = value;
  }
  return passed;
}
