import type { TransferReport } from "../transceiver/api.ts";

/** How a request went, for the time line of `kvt demo` and for whoever looks into one request (GET /kv/transfers). */
export interface RequestRecord {
  readonly event: "request";
  readonly request_id: string;
  readonly role: "aggregated" | "context" | "generation";
  readonly status: number;
  /** Unix milliseconds of the arrival. */
  readonly arrived_ms: number;
  readonly queue_ms: number;
  readonly prefill_ms: number;
  readonly transfer_ms: number;
  readonly decode_ms: number;
  readonly prompt_tokens: number;
  readonly cached_tokens: number;
  readonly output_tokens: number;
  readonly error?: string;
}

/** One side's view of one transfer; the fields of `TransferReport` (src/transceiver/api.ts). */
export interface TransferRecord {
  readonly event: "transfer";
  readonly request_id: string;
  readonly direction: "send" | "receive";
  readonly ctx_request_id: string;
  readonly bytes: number;
  readonly blocks: number;
  readonly tokens: number;
  readonly ms: number;
  readonly queue_ms: number;
  readonly connect_ms: number;
  readonly wait_ms: number;
  readonly moving_ms: number;
  readonly verify_ms: number;
  readonly gb_per_s: number;
  readonly path: string;
  readonly chunks: number;
  readonly runs: number;
  readonly pieces: number;
  readonly attempts: number;
  /** Of bytes that went over NIXL, as its telemetry has it. */
  readonly nixl?: {
    readonly posts: number;
    readonly post_ms: number;
    readonly transfer_ms: number;
    readonly descriptors: number;
    readonly bytes: number;
  };
}

export function transferRecord(
  requestId: string,
  direction: TransferRecord["direction"],
  report: TransferReport,
): TransferRecord {
  return {
    event: "transfer",
    request_id: requestId,
    direction,
    ctx_request_id: report.requestId,
    bytes: report.bytes,
    blocks: report.blocks,
    tokens: report.tokens,
    ms: report.ms,
    queue_ms: report.queueMs,
    connect_ms: report.connectMs,
    wait_ms: report.waitMs,
    moving_ms: report.movingMs,
    verify_ms: report.verifyMs,
    gb_per_s: report.gbPerS,
    path: report.path,
    chunks: report.chunks,
    runs: report.runs,
    pieces: report.pieces,
    attempts: report.attempts,
    ...(report.wire && {
      nixl: {
        posts: report.wire.posts,
        post_ms: report.wire.postMs,
        transfer_ms: report.wire.transferMs,
        descriptors: report.wire.descriptors,
        bytes: report.wire.bytes,
      },
    }),
  };
}

const RECORDS_MAX = 256;

/** The last records, oldest first. */
export class Records {
  #list: (RequestRecord | TransferRecord)[] = [];

  add(record: RequestRecord | TransferRecord): void {
    this.#list.push(record);
    if (this.#list.length > RECORDS_MAX) this.#list = this.#list.slice(-RECORDS_MAX);
  }

  of(requestId: string | undefined): readonly (RequestRecord | TransferRecord)[] {
    return requestId === undefined ? this.#list : this.#list.filter((record) => record.request_id === requestId);
  }
}
