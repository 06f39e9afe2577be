import { request } from "undici";
import { z } from "zod";
import type { Member } from "./deployment.ts";
import type { Paint } from "./paint.ts";

// GET /kv/transfers of a worker: what it measured itself (src/worker/records.ts).
const TransferRecord = z.object({
  event: z.literal("transfer"),
  direction: z.enum(["send", "receive"]),
  bytes: z.number(),
  blocks: z.number(),
  ms: z.number(),
  moving_ms: z.number(),
  gb_per_s: z.number(),
  path: z.string(),
});
export type TransferRecord = z.infer<typeof TransferRecord>;

const RequestRecord = z.object({
  event: z.literal("request"),
  role: z.enum(["aggregated", "context", "generation"]),
  queue_ms: z.number(),
  prefill_ms: z.number(),
  decode_ms: z.number(),
  prompt_tokens: z.number(),
  output_tokens: z.number(),
});
export type RequestRecord = z.infer<typeof RequestRecord>;

const Records = z.object({ records: z.array(z.discriminatedUnion("event", [TransferRecord, RequestRecord])) });

export interface WorkerRecords {
  readonly member: Member;
  readonly request: RequestRecord | undefined;
  readonly received: TransferRecord | undefined;
}

/** What a worker itself measured for one request. */
export async function recordsOf(
  member: Member,
  requestId: string,
  authToken: string | undefined,
): Promise<WorkerRecords> {
  const response = await request(`${member.url}/kv/transfers?request_id=${encodeURIComponent(requestId)}`, {
    headers: authToken ? { authorization: `Bearer ${authToken}` } : {},
  });
  const { records } = Records.parse(await response.body.json());
  return {
    member,
    request: records.find((record) => record.event === "request"),
    received: records.filter((record) => record.event === "transfer").find(({ direction }) => direction === "receive"),
  };
}

export interface Span {
  readonly name: string;
  readonly ms: number;
  readonly text: string;
}

const BAR_CELLS = 36;

const milliseconds = (ms: number): string => (ms < 9.95 ? ms.toFixed(2) : ms.toFixed(1));
const grouped = (number: number): string => number.toLocaleString("en-US");

/** The spans of one disaggregated request, in order: queue, prefill, transfer, decode. */
export function spansOf(context: WorkerRecords, generation: WorkerRecords): Span[] {
  const spans: Span[] = [];
  const prefill = context.request;
  const decode = generation.request;
  const moved = generation.received;
  if (prefill && decode) {
    spans.push({ name: "queue", ms: prefill.queue_ms + decode.queue_ms, text: "waiting for a turn, both workers" });
  }
  if (prefill) {
    const text = `${grouped(prefill.prompt_tokens)} tokens by ${context.member.name} (pid ${context.member.pid})`;
    spans.push({ name: "prefill", ms: prefill.prefill_ms, text });
  }
  if (moved) {
    const megabytes = (moved.bytes / 1e6).toFixed(2);
    const rate = `${moved.gb_per_s.toFixed(1)} GB/s over ${moved.path}`;
    const text = `${grouped(moved.blocks)} blocks, ${megabytes} MB moved in ${Math.round(moved.moving_ms * 1000)} µs: ${rate}`;
    spans.push({ name: "transfer", ms: moved.ms, text });
  }
  if (decode) {
    const text = `${grouped(decode.output_tokens)} tokens by ${generation.member.name} (pid ${generation.member.pid})`;
    spans.push({ name: "decode", ms: decode.decode_ms, text });
  }
  return spans;
}

/** One line a span: name, time, a bar at its place in the whole, and what was done. */
export function renderTimeline(spans: readonly Span[], paint: Paint): string[] {
  const total = spans.reduce((sum, { ms }) => sum + ms, 0) || 1;
  let before = 0;
  return spans.map(({ name, ms, text }) => {
    const start = Math.min(BAR_CELLS - 1, Math.floor((before / total) * BAR_CELLS));
    before += ms;
    const cells = Math.max(1, Math.min(BAR_CELLS - start, Math.round((ms / total) * BAR_CELLS)));
    const bar = " ".repeat(start) + "█".repeat(cells) + " ".repeat(BAR_CELLS - start - cells);
    const head = `${name.padEnd(9)}${milliseconds(ms).padStart(8)} ms  `;
    return `${head}${name === "transfer" ? paint.green(bar) : paint.cyan(bar)}  ${text}`;
  });
}
