import type { Clock } from "../clock.ts";
import { KvError } from "../errors.ts";
import type { Hop } from "../openai/index.ts";
import { type Answer, ExchangeError, exchange, type StreamTarget } from "./exchange.ts";
import { failureOfAnswer, HopFailure } from "./hop_failure.ts";
import { joinSignals } from "./joined_signal.ts";
import { type CallTrace, callPaths, type RoutedCall } from "./routed_call.ts";
import type { RouterMetrics } from "./router_metrics.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

export interface HopRunnerOptions {
  readonly clock: Clock;
  readonly metrics: RouterMetrics;
  /** Longest silence inside a streamed answer (S104). */
  readonly silenceMs: number;
  /** Largest answer that is collected. */
  readonly answerBytesMax: number;
  /** A worker failed a request in a way that a probe may confirm. */
  readonly onSuspect: (worker: UpstreamWorker) => void;
}

export interface HopOptions<Result> {
  readonly body: string;
  /** Makes something of the 200 answer; throws a HopFailure when nothing can be made of it. */
  readonly read: (answer: Answer) => Result;
  /** Given: a 200 answer is streamed there. */
  readonly target?: StreamTarget;
  readonly onSend?: () => void;
  /** Ends this hop alone; its reason is what `run` throws then. */
  readonly stop?: AbortSignal;
  readonly isRetry: boolean;
}

/** The worker stopped answering health probes while the hop waited for it. */
const LOST = new ExchangeError("lost", "it stopped answering health probes");

/** Sends one hop of a call to a worker, judges what comes back, and keeps the worker's breaker and the metrics. */
export class HopRunner {
  readonly #options: HopRunnerOptions;

  constructor(options: HopRunnerOptions) {
    this.#options = options;
  }

  /**
   * @returns what `read` made of the answer
   * @throws HopFailure; or the reason of the call's signal or of `stop`; or what `onSend` threw
   */
  async run<Result>(hop: Hop, call: RoutedCall, worker: UpstreamWorker, options: HopOptions<Result>): Promise<Result> {
    const { clock } = this.#options;
    const metrics = this.#options.metrics.hops[hop];
    metrics.total.inc();
    if (options.isRetry) metrics.retries.inc();
    const sentMs = clock.nowMs();
    call.trace.dispatchedMs ??= sentMs;
    noteTry(call.trace, hop, worker);
    let firstByteMs: number | undefined;
    const target = options.target && watchFirstByte(options.target, () => (firstByteMs = clock.nowMs()));
    // A stream that runs is not cut for failing probes: its own end or silence will tell.
    const lost = new AbortController();
    const giveUp = (): void => {
      if (!call.answer.started) lost.abort(LOST);
    };
    const { lost: lostSignal } = worker;
    lostSignal.addEventListener("abort", giveUp, { once: true });
    const limit = joinSignals([call.signal, lost.signal, ...(options.stop ? [options.stop] : [])]);
    try {
      const answer = await exchange(worker.dispatcher, {
        method: "POST",
        path: callPaths[call.kind],
        headers: { ...call.headers, "content-type": "application/json", "x-request-id": call.id },
        body: options.body,
        signal: limit.signal,
        silenceMs: this.#options.silenceMs,
        bytesMax: this.#options.answerBytesMax,
        ...(options.onSend && { onSend: options.onSend }),
        ...(target && { target }),
      });
      if (answer.status !== 200) throw failureOfAnswer(hop, worker, answer);
      const result = options.read(answer);
      worker.breaker.succeeded();
      const endMs = clock.nowMs();
      metrics.completed.inc();
      metrics.complete.observe((endMs - sentMs) / 1000);
      metrics.firstToken.observe(((firstByteMs ?? endMs) - sentMs) / 1000);
      if (firstByteMs !== undefined && call.answer.pieces > 1) {
        metrics.perToken.observe((endMs - firstByteMs) / 1000 / (call.answer.pieces - 1));
      }
      return result;
    } catch (error) {
      metrics.errors.inc();
      const failure = error instanceof ExchangeError ? this.#failureOf(hop, worker, error) : error;
      if (failure instanceof HopFailure) this.#blame(failure);
      throw failure;
    } finally {
      limit.dispose();
      lostSignal.removeEventListener("abort", giveUp);
    }
  }

  #failureOf(hop: Hop, worker: UpstreamWorker, error: ExchangeError): HopFailure {
    const details = { worker: worker.url, why: error.message };
    const errors = {
      unreachable: () => new KvError("WORKER_UNREACHABLE", details, { cause: error }),
      lost: () => new KvError("WORKER_LOST", details, { cause: error }),
      silent: () => new KvError("WORKER_SILENT", { worker: worker.url, ms: this.#options.silenceMs }, { cause: error }),
      nonsense: () => new KvError("WORKER_NONSENSE", details, { cause: error }),
      too_large: () => new KvError("WORKER_NONSENSE", details, { cause: error }),
    };
    return new HopFailure({ hop, worker, verdict: "retry", error: errors[error.fault]() });
  }

  /** A full or draining worker, or a client's mistake, is no reason to keep requests away from it. */
  #blame(failure: HopFailure): void {
    const { worker, words } = failure;
    if (failure.verdict === "prefill_again") {
      worker.breaker.ended();
    } else if (words === undefined) {
      worker.breaker.failed();
      this.#options.onSuspect(worker);
    } else if (words.status >= 500 && words.status !== 503) {
      worker.breaker.failed();
    } else {
      worker.breaker.ended();
    }
  }
}

function noteTry(trace: CallTrace, hop: Hop, worker: UpstreamWorker): void {
  if (hop === "context") {
    trace.contextWorker = worker.url;
    trace.contextTries += 1;
  } else {
    trace.generationWorker = worker.url;
    trace.generationTries += 1;
  }
}

const watchFirstByte = (target: StreamTarget, onFirst: () => void): StreamTarget => ({
  begin: (headers) => {
    onFirst();
    target.begin(headers);
  },
  write: (piece) => target.write(piece),
  whenWritable: (resume) => target.whenWritable(resume),
});
