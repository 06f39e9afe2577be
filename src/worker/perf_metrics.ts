import { requestIdToBigInt } from "../ids.ts";
import type { JsonObject } from "../openai/index.ts";
import type { TransferReport } from "../transceiver/api.ts";
import type { RequestOutcome, RequestSpec } from "./request.ts";

/** One answered request. Times in ms of this process's steady clock. */
export interface PerfEntry {
  readonly requestId: string;
  readonly spec: RequestSpec;
  readonly outcome: RequestOutcome;
  readonly serverArrivalMs: number;
  /** The first byte of the answer was handed to the connection. */
  readonly serverFirstTokenMs: number;
}

interface Transferred {
  readonly report: TransferReport;
  readonly startMs: number;
  readonly endMs: number;
}

/**
 * What GET /perf_metrics of trtllm-serve gives, for the last requests (trtllm-protocol.md section 2.6): its router joins the records of
 * both halves by `ctx_request_id`, its breakdown tool reads them. Stamps are seconds of the steady clock, moved by the offset that a
 * router has set.
 */
export class PerfMetrics {
  readonly #max: number;
  readonly #tokensPerBlock: number;
  #entries: { readonly entry: PerfEntry; transfer: Transferred | undefined }[] = [];

  /** @param max `perf_metrics_max_requests`; the oldest records go first */
  constructor(max: number, tokensPerBlock: number) {
    this.#max = max;
    this.#tokensPerBlock = tokensPerBlock;
  }

  add(entry: PerfEntry): void {
    if (this.#max === 0) return;
    const { transfer: report, stamps, offer } = entry.outcome;
    const received =
      report === null ? undefined : { report, startMs: stamps.firstScheduledMs, endMs: stamps.receivedMs };
    const record = { entry, transfer: received };
    this.#entries.push(record);
    if (this.#entries.length > this.#max) this.#entries.shift();
    offer?.done.then(
      (sent) => {
        const endMs = performance.now();
        record.transfer = { report: sent, startMs: endMs - sent.movingMs, endMs };
      },
      () => {},
    );
  }

  /** All records since the last call. */
  drain(offsetS: number): JsonObject[] {
    return this.#entries.splice(0).map(({ entry, transfer }) => this.#record(entry, transfer, offsetS));
  }

  #record({ requestId, spec, outcome, ...server }: PerfEntry, transfer: Transferred | undefined, offsetS: number) {
    const stamp = (ms: number): number => ms / 1000 + offsetS;
    const { stamps } = outcome;
    const contextId = transfer?.report.requestId ?? ("contextId" in spec.role ? spec.role.contextId : null);
    return {
      request_id: requestId,
      perf_metrics: {
        timing_metrics: {
          server_arrival_time: stamp(server.serverArrivalMs),
          arrival_time: stamp(stamps.arrivalMs),
          first_scheduled_time: stamp(stamps.firstScheduledMs),
          first_token_time: stamp(stamps.firstTokenMs),
          server_first_token_time: stamp(server.serverFirstTokenMs),
          last_token_time: stamp(stamps.lastTokenMs),
          ...(transfer && {
            kv_cache_size: transfer.report.bytes,
            kv_cache_transfer_start: stamp(transfer.startMs),
            kv_cache_transfer_end: stamp(transfer.endMs),
          }),
        },
        kv_cache_metrics: this.#blocks(spec, outcome),
        ...(transfer && { kv_transfer: transferFields(transfer.report) }),
      },
      ...(contextId === null ? {} : { ctx_request_id: requestIdToBigInt(contextId) }),
    };
  }

  #blocks(spec: RequestSpec, { cachedTokens, reservedTokens }: RequestOutcome) {
    const total = Math.ceil(reservedTokens / this.#tokensPerBlock);
    const reused = Math.floor(cachedTokens / this.#tokensPerBlock);
    return {
      num_total_allocated_blocks: total,
      num_new_allocated_blocks: total - reused,
      num_reused_blocks: reused,
      num_missed_blocks: Math.ceil(spec.prompt.length / this.#tokensPerBlock) - reused,
    };
  }
}

/** Ours, beside what TensorRT-LLM has. */
const transferFields = (report: TransferReport) => ({
  bytes: report.bytes,
  seconds: report.ms / 1000,
  queue_seconds: report.queueMs / 1000,
  connect_seconds: report.connectMs / 1000,
  wait_seconds: report.waitMs / 1000,
  move_seconds: report.movingMs / 1000,
  verify_seconds: report.verifyMs / 1000,
  gb_per_s: report.gbPerS,
  transport: report.path,
  runs: report.runs,
  pieces: report.pieces,
  retries: report.attempts - 1,
  ...(report.wire && {
    nixl: {
      posts: report.wire.posts,
      post_seconds: report.wire.postMs / 1000,
      transfer_seconds: report.wire.transferMs / 1000,
      descriptors: report.wire.descriptors,
      bytes: report.wire.bytes,
    },
  }),
});
