import { type Metrics, timeBuckets } from "../observability/metrics.ts";
import type { Transceiver } from "../transceiver/api.ts";
import type { PerfEntry } from "./perf_metrics.ts";
import type { Scheduler } from "./scheduler.ts";

type Label = "model_name" | "engine_type";

/**
 * What trtllm-serve gives at /prometheus/metrics under the same names, labels and buckets, so that dashboards made for it show this
 * worker too (TensorRT-LLM `tensorrt_llm/metrics/collector.py`).
 */
export class TrtllmMetrics {
  readonly #labels: Readonly<Record<Label, string>>;
  readonly #success;
  readonly #latency;
  readonly #firstToken;
  readonly #perToken;
  readonly #queue;
  readonly #metrics: Metrics;

  constructor(metrics: Metrics, modelName: string) {
    this.#metrics = metrics;
    this.#labels = { model_name: modelName, engine_type: "kvt" };
    const labels = ["model_name", "engine_type"] as const;
    this.#success = metrics.counter<Label | "finished_reason">({
      name: "trtllm_request_success_total",
      help: "Requests that were answered, by what ended the answer.",
      labels: [...labels, "finished_reason"],
    });
    const histogram = (name: string, help: string, buckets: readonly number[]) =>
      metrics.histogram<Label>({ name: `trtllm_${name}`, help, labels, buckets });
    this.#latency = histogram("e2e_request_latency_seconds", "From arrival to the last token.", timeBuckets.request);
    this.#firstToken = histogram("time_to_first_token_seconds", "From arrival to token 0.", timeBuckets.firstToken);
    this.#perToken = histogram("time_per_output_token_seconds", "Between two output tokens.", timeBuckets.outputToken);
    this.#queue = histogram("request_queue_time_seconds", "From the queue to the first step.", timeBuckets.request);
  }

  served({ outcome, serverArrivalMs }: PerfEntry): void {
    const { stamps, outputTokens, finish } = outcome;
    this.#success.inc({ ...this.#labels, finished_reason: finish.reason });
    this.#latency.observe(this.#labels, (stamps.lastTokenMs - serverArrivalMs) / 1000);
    this.#firstToken.observe(this.#labels, (stamps.firstTokenMs - serverArrivalMs) / 1000);
    this.#queue.observe(this.#labels, (stamps.firstScheduledMs - stamps.arrivalMs) / 1000);
    if (outputTokens < 2) return;
    const perTokenMs = (stamps.lastTokenMs - stamps.firstTokenMs) / (outputTokens - 1);
    this.#perToken.observe(this.#labels, perTokenMs / 1000);
  }

  watch({ scheduler, transceiver }: { readonly scheduler: Scheduler; readonly transceiver: Transceiver }): void {
    const gauge = (name: string, help: string, value: () => number): void => {
      this.#metrics.gauge<Label>({
        name: `trtllm_${name}`,
        help,
        labels: ["model_name", "engine_type"],
        read: (made) => made.set(this.#labels, value()),
      });
    };
    gauge("num_requests_running", "Requests that compute or receive.", () => {
      const { prefilling, decoding, receiving } = scheduler.load;
      return prefilling + decoding + receiving;
    });
    gauge("num_requests_waiting", "Requests in the queue.", () => scheduler.load.waiting);
    gauge("kv_cache_utilization", "Part of the KV blocks that is held, the prefix cache included.", () => {
      const { held, total } = transceiver.stats().blocks;
      return held / total;
    });
  }
}
