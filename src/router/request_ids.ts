import { randomInt } from "node:crypto";

const EPOCH_MS = Date.UTC(2025, 0, 1);
const COUNTER_BITS = 10n;
const PROCESS_BITS = 6n;
const NODE_BITS = 8n;
const TIME_BITS = 39n;
const IDS_PER_MS = 1 << Number(COUNTER_BITS);
const TIME_SHIFT = NODE_BITS + PROCESS_BITS + COUNTER_BITS;

/** Ids below belong to the workers: they count their own requests from 0 (trtllm-protocol.md section 2.1). */
export const GLOBAL_ID_MIN = 1n << 40n;
/** A sign bit of 0: real workers keep ids in signed 64-bit integers. */
export const GLOBAL_ID_LIMIT = 1n << 63n;

/** First millisecond whose ids reach GLOBAL_ID_MIN, and how many there are from it on. */
const TIME_MIN = GLOBAL_ID_MIN >> TIME_SHIFT;
const TIME_RANGE = (1n << TIME_BITS) - TIME_MIN;

export interface RequestIdOptions {
  /** 0..255 */
  readonly node: number;
  /** 0..63: several router processes of one node. */
  readonly process?: number;
  /** Wall clock, ms since 1970. */
  readonly wallMs?: () => number;
  /** 0..1023; random by default, so that a restart within a millisecond does not repeat its ids. */
  readonly counterOrigin?: number;
}

/**
 * Ids that both workers use for one hand-off: 39 bits of milliseconds since 2025, 8 bits node, 6 bits process, 10 bits counter.
 * Unique in a process for ever, over restarts as long as the wall clock does not step back further than the process was down.
 */
export class RequestIds {
  readonly #fixed: bigint;
  readonly #wallMs: () => number;
  #ms = 0;
  #counter: number;
  #usedInMs = 0;

  constructor(options: RequestIdOptions) {
    const node = BigInt(options.node) & ((1n << NODE_BITS) - 1n);
    const process = BigInt(options.process ?? 0) & ((1n << PROCESS_BITS) - 1n);
    this.#fixed = ((node << PROCESS_BITS) | process) << COUNTER_BITS;
    this.#wallMs = options.wallMs ?? Date.now;
    this.#counter = options.counterOrigin ?? randomInt(IDS_PER_MS);
  }

  next(): bigint {
    const now = this.#wallMs() - EPOCH_MS;
    if (now > this.#ms) {
      this.#ms = now;
      this.#usedInMs = 0;
    } else if (this.#usedInMs === IDS_PER_MS) {
      // The counter has come round within this millisecond (or the clock went back): borrow the next one.
      this.#ms += 1;
      this.#usedInMs = 0;
    }
    this.#usedInMs += 1;
    this.#counter = (this.#counter + 1) % IDS_PER_MS;
    const time = TIME_MIN + (BigInt(this.#ms) % TIME_RANGE);
    return (time << TIME_SHIFT) | this.#fixed | BigInt(this.#counter);
  }
}
