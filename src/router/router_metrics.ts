import type { Counter, Histogram } from "prom-client";
import { latencyBuckets, Metrics } from "../observability/metrics.ts";
import type { Hop } from "../openai/index.ts";
import type { Fleet } from "./fleet.ts";

/** One hop's figures, under the names of trtllm-serve's router (trtllm-protocol.md section 2.6). */
export interface HopMetrics {
  readonly total: Counter;
  readonly errors: Counter;
  readonly retries: Counter;
  readonly completed: Counter;
  readonly firstToken: Histogram;
  readonly complete: Histogram;
  readonly perToken: Histogram;
}

/** All figures of one router. */
export class RouterMetrics {
  readonly #metrics = new Metrics();
  readonly requests = this.#counter("total_requests", "Requests on the two OpenAI routes.");
  readonly streams = this.#counter("stream_requests", "Of these, with stream: true.");
  readonly nonStreams = this.#counter("nonstream_requests", "Of these, without.");
  readonly validationErrors = this.#counter(
    "validation_exceptions",
    "Answered 400, 404, 413 or 415 by the router itself.",
  );
  readonly httpErrors = this.#counter("http_exceptions", "Answered with another error status.");
  readonly internalErrors = this.#counter("internal_errors", "Answered 500: defects of the router.");
  readonly responses = this.#counter("total_responses", "Answered completely and well.");
  readonly queueLatency = this.#histogram("queue_latency_seconds", "From arrival to the dispatch of the first hop.");
  readonly hops: Readonly<Record<Hop, HopMetrics>> = { context: this.#hop("ctx"), generation: this.#hop("gen") };
  readonly answers = this.#metrics.counter({
    name: "kvt_router_answers",
    help: "Answers by HTTP status; 499 is a client that left.",
    labels: ["status"],
  });
  readonly releases = this.#metrics.counter({
    name: "kvt_router_releases",
    help: "Hand-offs given back and requests aborted at workers because nobody will use them.",
    labels: ["kind", "outcome"],
  });

  /** Adds the gauges that only the running server can read. */
  watch(sources: { readonly fleet: Fleet; readonly inFlight: () => number }): void {
    this.#metrics.gauge({
      name: "kvt_router_requests_in_flight",
      help: "Requests that were admitted and are not answered completely.",
      read: (gauge) => gauge.set(sources.inFlight()),
    });
    this.#metrics.gauge({
      name: "kvt_router_worker_ready",
      help: "1 while the worker is healthy and prepared.",
      labels: ["worker"],
      read: (gauge) => {
        for (const worker of sources.fleet.workers) {
          gauge.set({ worker: worker.url }, worker.state === "ready" ? 1 : 0);
        }
      },
    });
    this.#metrics.gauge({
      name: "kvt_router_worker_requests_in_flight",
      help: "Requests that are with the worker now.",
      labels: ["worker"],
      read: (gauge) => {
        for (const worker of sources.fleet.workers) gauge.set({ worker: worker.url }, worker.inFlight);
      },
    });
  }

  answered(status: number): void {
    this.answers.inc({ status: String(status) });
    if (status < 400) this.responses.inc();
    else if (status === 500) this.internalErrors.inc();
    else if ([400, 404, 413, 415].includes(status)) this.validationErrors.inc();
    else this.httpErrors.inc();
  }

  text(): Promise<string> {
    return this.#metrics.text();
  }

  #counter(name: string, help: string): Counter {
    return this.#metrics.counter({ name, help });
  }

  #histogram(name: string, help: string): Histogram {
    return this.#metrics.histogram({ name, help, buckets: latencyBuckets });
  }

  #hop(prefix: "ctx" | "gen"): HopMetrics {
    const side = prefix === "ctx" ? "context" : "generation";
    return {
      total: this.#counter(`${prefix}_total_requests`, `Requests sent to ${side} workers, retries included.`),
      errors: this.#counter(`${prefix}_error_requests`, `Of these, failed.`),
      retries: this.#counter(`${prefix}_retry_requests`, `Of these, sent because an earlier try failed.`),
      completed: this.#counter(`${prefix}_completed_requests`, `Of these, answered completely.`),
      firstToken: this.#histogram(`${prefix}_first_token_latency_seconds`, "From dispatch to the first byte."),
      complete: this.#histogram(`${prefix}_complete_latency_seconds`, "From dispatch to the last byte."),
      perToken: this.#histogram(
        `${prefix}_per_token_latency_seconds`,
        "Of streams: time between the first and the last piece, divided by the pieces between; a piece is mostly one token.",
      ),
    };
  }
}
