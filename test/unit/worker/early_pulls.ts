import { KvError } from "../../../src/errors.ts";
import type { RequestId } from "../../../src/ids.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import type {
  FirstTokens,
  ReceiveBlocks,
  ReceiveFromPeer,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  TransferReport,
} from "../../../src/transceiver/api.ts";
import { Settled } from "../../../src/transceiver/settled.ts";
import { TOKENS_PER_BLOCK, type TokenEngine } from "./token_engine.ts";

/** A receive without a state: waits for its offer, then copies each chunk when it is ready. */
class EarlyPull {
  readonly settled = new Settled<TransferReport>();
  readonly #engine: TokenEngine;
  readonly #target: BlockHold;
  readonly #requestId: RequestId;
  #copied: number;
  over = false;

  constructor(engine: TokenEngine, options: ReceiveBlocks & ReceiveFromPeer) {
    this.#engine = engine;
    this.#target = options.blocks.share();
    this.#copied = options.skipTokens ?? 0;
    this.#requestId = options.requestId;
  }

  copy(source: BlockHold, engine: TokenEngine, tokens: number): void {
    // Once each: what was said to be ready too early stays wrong.
    this.#engine.fetch(this.#target.ids, { engine, ids: source.ids }, this.#copied, tokens);
    this.#copied = Math.max(this.#copied, tokens);
  }

  end(error: KvError | null, tokens = 0, first?: FirstTokens): void {
    if (this.over) return;
    this.over = true;
    this.#target.release();
    if (error !== null) this.settled.reject(error);
    else this.settled.resolve({ ...report(this.#requestId, tokens), ...(first === undefined ? {} : { first }) });
  }
}

/** The generation-first half of LocalTransfers. */
export class EarlyPulls {
  readonly streamed: number[] = [];
  readonly #pulls = new Map<RequestId, EarlyPull>();
  readonly #awaited = new Map<RequestId, () => void>();
  readonly #refused = new Set<RequestId>();
  readonly #cancels = new Map<RequestId, () => void>();
  /** Offers that were made before anybody asked. */
  readonly #standing = new Map<RequestId, (pull: EarlyPull) => void>();

  awaitPull(requestId: RequestId, signal: AbortSignal | undefined): Promise<void> {
    if (this.#pulls.has(requestId)) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#awaited.set(requestId, resolve);
      signal?.addEventListener("abort", () => reject(signal.reason));
    });
  }

  refuse(requestId: RequestId): void {
    this.#refused.add(requestId);
    this.#pulls.get(requestId)?.end(new KvError("GONE", { request: requestId, peer: "test" }));
    this.#pulls.delete(requestId);
  }

  receive(engine: TokenEngine, options: ReceiveBlocks & ReceiveFromPeer): ReceiveTransfer {
    const { requestId, tokens } = options;
    const pull = new EarlyPull(engine, options);
    this.#pulls.set(requestId, pull);
    if (this.#refused.has(requestId)) this.refuse(requestId);
    this.#awaited.get(requestId)?.();
    this.#standing.get(requestId)?.(pull);
    const done = pull.settled.promise;
    const cancel = () => {
      pull.end(new KvError("CANCELLED", { transfer: requestId, why: "receiver" }));
      this.#cancels.get(requestId)?.();
      return "cancelled" as const;
    };
    const released = done.then(
      () => {},
      () => {},
    );
    return { requestId, tokens, done, released, progress: (async function* () {})(), cancel };
  }

  /** undefined: nobody waits for it, and it is no prefill that is offered while it is computed. */
  offer(engine: TokenEngine, { requestId, tokens, blocks: given, ready }: SendOptions): SendTransfer | undefined {
    let pull = this.#pulls.get(requestId);
    if (pull === undefined && ready === undefined) return undefined;
    const blocks = given.share();
    const settled = new Settled<TransferReport>();
    let over = false;
    let announced = ready ?? tokens;
    let tokenZero: FirstTokens | undefined;
    const end = (error: KvError | null): void => {
      if (over) return;
      over = true;
      this.#standing.delete(requestId);
      blocks.release();
      if (error === null) settled.resolve(report(requestId, tokens));
      else settled.reject(error);
    };
    this.#cancels.set(requestId, () =>
      end(new KvError("CANCELLED", { transfer: requestId, why: "the receiver cancelled it" })),
    );
    const take = (until: number): void => {
      announced = until;
      if (pull === undefined || pull.over || over) return;
      this.streamed.push(until);
      pull.copy(blocks, engine, until);
    };
    /** The receiver's DONE comes later than the call. */
    const deliver = (): void => {
      if (tokenZero === undefined || pull === undefined) return;
      const [reader, first] = [pull, tokenZero];
      queueMicrotask(() => {
        if (reader.over) return;
        reader.end(null, tokens, first);
        end(null);
      });
    };
    if (pull === undefined) {
      this.#standing.set(requestId, (late) => {
        pull = late;
        take(announced);
        deliver();
      });
    } else if (pull.over) this.#cancels.get(requestId)?.();
    take(announced);
    return {
      requestId,
      state: `offer-${requestId}`,
      ready: (now) => {
        if (now > announced) take(now);
      },
      finish: (first) => {
        if (announced < tokens) take(tokens);
        tokenZero = first;
        deliver();
      },
      done: settled.promise,
      cancel: (why = "cancelled") => {
        if (over) return "already_complete";
        const granted = pull;
        const error = new KvError("CANCELLED", { transfer: requestId, why });
        if (granted === undefined) {
          end(error);
          return "cancelled";
        }
        queueMicrotask(() => {
          granted.end(new KvError("SENDER_ABORTED", { transfer: requestId, why }));
          end(error);
        });
        return "in_flight";
      },
    };
  }
}

export const report = (requestId: RequestId, tokens: number): TransferReport => ({
  requestId,
  bytes: tokens * 16,
  blocks: Math.ceil(tokens / TOKENS_PER_BLOCK),
  tokens,
  ms: 1,
  queueMs: 0,
  connectMs: 0,
  waitMs: 0,
  movingMs: 1,
  verifyMs: 0,
  gbPerS: 1,
  path: "test",
  chunks: 1,
  runs: 1,
  pieces: 1,
  attempts: 1,
});
