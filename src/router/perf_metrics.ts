import type { Logger } from "../observability/log.ts";
import { type JsonObject, parseList } from "../openai/index.ts";
import { exchange } from "./exchange.ts";
import { joinSignals } from "./joined_signal.ts";
import type { CallTrace } from "./routed_call.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

export interface PerfMetricsOptions {
  /** `perf_metrics_max_requests`: of requests that wait for their records, and of records of one worker that wait for their request. */
  readonly max: number;
  readonly workers: readonly UpstreamWorker[];
  readonly log: Logger;
}

interface Answered {
  readonly contextServer: string;
  readonly generationServer: string;
  readonly ctxRequestId: bigint;
  readonly arrivalMs: number;
  readonly firstTokenMs: number;
}

const LIMIT_MS = 5_000;
const BYTES_MAX = 64 << 20;

/**
 * GET /perf_metrics of the router: the records of both workers of each request, joined by `ctx_request_id`, with the router's own stamps,
 * in the shape that TensorRT-LLM's breakdown tool reads (trtllm-protocol.md section 2.6). Reading drains the workers; requests
 * whose generation record is not there yet stay.
 */
export class PerfMetrics {
  readonly #options: PerfMetricsOptions;
  #answered: Answered[] = [];
  readonly #records = new Map<string, Map<bigint, JsonObject>>();
  #reading: Promise<unknown> = Promise.resolve();

  constructor(options: PerfMetricsOptions) {
    this.#options = options;
  }

  /** A request that both workers have served. @param endMs when its answer was complete, for one that was no stream */
  answered(trace: CallTrace, endMs: number): void {
    const { contextWorker, generationWorker, ctxRequestId } = trace;
    if (this.#options.max === 0 || ctxRequestId === undefined) return;
    if (contextWorker === undefined || generationWorker === undefined) return;
    this.#answered.push({
      contextServer: contextWorker,
      generationServer: generationWorker,
      ctxRequestId,
      arrivalMs: trace.arrivedMs,
      // The tool stacks the segments in the order of the hops.
      firstTokenMs: trace.begunMs ?? endMs,
    });
    if (this.#answered.length > this.#options.max) this.#answered.shift();
  }

  /** Two readers at once would each get a part: the second one waits. */
  read(): Promise<JsonObject[]> {
    const reading = this.#reading.then(() => this.#read());
    this.#reading = reading.catch(() => {});
    return reading;
  }

  async #read(): Promise<JsonObject[]> {
    if (this.#options.max === 0) return [];
    await Promise.all(this.#options.workers.map((worker) => this.#collect(worker)));
    const waiting: Answered[] = [];
    const joined: JsonObject[] = [];
    for (const request of this.#answered) {
      const generation = this.#take(request.generationServer, request.ctxRequestId);
      if (generation === undefined) waiting.push(request);
      else joined.push(join(request, this.#take(request.contextServer, request.ctxRequestId), generation));
    }
    this.#answered = waiting;
    return joined;
  }

  async #collect(worker: UpstreamWorker): Promise<void> {
    if (worker.state !== "ready") return;
    const limit = joinSignals([], LIMIT_MS);
    try {
      const call = {
        method: "GET",
        path: "/perf_metrics",
        signal: limit.signal,
        silenceMs: 0,
        bytesMax: BYTES_MAX,
      } as const;
      const answer = await exchange(worker.control, call);
      if (answer.status !== 200) throw new Error(`it answered ${answer.status}`);
      this.#keep(worker, parseList(answer.body));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.#options.log.warn({ worker: worker.url, why }, "perf metrics of a worker can't be read");
    } finally {
      limit.dispose();
    }
  }

  #keep(worker: UpstreamWorker, list: readonly JsonObject[]): void {
    const records = this.#records.get(worker.url) ?? new Map<bigint, JsonObject>();
    this.#records.set(worker.url, records);
    for (const record of list) {
      const id = record.ctx_request_id;
      if (typeof id !== "bigint" && typeof id !== "number") continue;
      records.set(BigInt(id), record);
      if (records.size <= this.#options.max) continue;
      for (const oldest of records.keys()) {
        records.delete(oldest);
        break;
      }
    }
  }

  #take(server: string, id: bigint): JsonObject | undefined {
    const records = this.#records.get(server);
    const record = records?.get(id);
    records?.delete(id);
    return record;
  }
}

/** Without its context worker's record, an empty one stands there: the tool takes missing stamps for none. */
const join = (request: Answered, context: JsonObject | undefined, generation: JsonObject): JsonObject => ({
  ctx_server: request.contextServer,
  gen_server: request.generationServer,
  disagg_server_arrival_time: request.arrivalMs / 1000,
  disagg_server_first_token_time: request.firstTokenMs / 1000,
  ctx_perf_metrics: context ?? {},
  gen_perf_metrics: generation,
});
