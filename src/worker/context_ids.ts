import { createHash, randomInt } from "node:crypto";
import { hostname } from "node:os";
import { type RequestId, requestId } from "../ids.ts";

/** 2025-01-01T00:00:00Z in Unix milliseconds. */
const EPOCH_MS = 1_735_689_600_000;
const COUNTER_BITS = 10n;
const PROCESS_BITS = 6n;
const NODE_BITS = 8n;

/**
 * Ids under which context requests are known to their generation worker, when the router sends none: 39 bits of milliseconds since
 * 2025, 8 of the node, 6 of the process, 10 of a counter (trtllm-protocol.md section 2.1). Time never goes back; a counter that
 * overflows borrows the next millisecond, so no id comes twice in a process.
 */
export class ContextIds {
  readonly #place: bigint;
  readonly #nowMs: () => number;
  #ms = 0;
  #counter = randomInt(1 << 10);
  #next: bigint | null;

  /** @param first the first id of a test (KVT_TEST_CTX_REQUEST_ID); the following count up from it */
  constructor(options: { readonly nowMs?: () => number; readonly first?: bigint } = {}) {
    this.#nowMs = options.nowMs ?? Date.now;
    this.#next = options.first ?? null;
    const node = createHash("sha256").update(hostname()).digest().readUInt8(0);
    this.#place = (BigInt(node) << PROCESS_BITS) | BigInt(process.pid % (1 << Number(PROCESS_BITS)));
  }

  next(): RequestId {
    if (this.#next !== null) return requestId(this.#next++);
    const ms = Math.max(this.#nowMs() - EPOCH_MS, this.#ms);
    if (ms > this.#ms) this.#issued = 0;
    this.#ms = ms;
    this.#counter = (this.#counter + 1) % (1 << Number(COUNTER_BITS));
    this.#issued++;
    if (this.#issued > 1 << Number(COUNTER_BITS)) {
      this.#ms++;
      this.#issued = 1;
    }
    const time = BigInt(this.#ms) << (NODE_BITS + PROCESS_BITS + COUNTER_BITS);
    return requestId(time | (this.#place << COUNTER_BITS) | BigInt(this.#counter));
  }

  /** Ids given out in this millisecond. */
  #issued = 0;
}
