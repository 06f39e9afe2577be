import { KvError } from "../../../src/errors.ts";
import type { BlockHold, BlockPool } from "../../../src/kv/pool.ts";
import type {
  CancelOutcome,
  ReceiveBlocks,
  ReceiveByState,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  TransferReport,
} from "../../../src/transceiver/api.ts";
import type { TransferPort } from "../../../src/worker/scheduler_options.ts";
import { EarlyPulls, report } from "./early_pulls.ts";
import { TOKENS_PER_BLOCK, type TokenEngine } from "./token_engine.ts";

interface Offer {
  readonly options: SendOptions;
  readonly blocks: BlockHold;
  readonly engine: TokenEngine;
  readonly end: (error: KvError | null) => void;
  /** A receiver reads: only its end releases the blocks (I2). */
  granted: boolean;
}

/**
 * Moves "KV" between token engines of one process, one microtask late. It shows how the scheduler drives transfers and what it does
 * when they fail or are slow to let go; that bytes arrive is shown with the real transceiver only.
 */
export class LocalTransfers {
  readonly offers = new Map<string, Offer>();
  /** Receives wait here when a test sets it; a cancelled one then stays in flight until it opens. */
  gate: Promise<void> | null = null;
  failNext: KvError | null = null;
  fetchedBlocks = 0;
  fetchedTokens = 0;
  readonly #early = new EarlyPulls();

  /** Tokens that generation-first receives had when token 0 came, chunk by chunk. */
  get streamed(): readonly number[] {
    return this.#early.streamed;
  }

  port(engine: TokenEngine, _pool: BlockPool): TransferPort {
    return {
      send: (options) => this.#send(engine, options),
      receive: (options) => {
        return "state" in options ? this.#receive(engine, options) : this.#early.receive(engine, options);
      },
      awaitPull: (requestId, signal) => this.#early.awaitPull(requestId, signal),
      refuse: (requestId) => this.#early.refuse(requestId),
      decline: (state) => {
        this.#end(state, new KvError("RECEIVER_FAILED", { transfer: state, why: "declined" }));
      },
      release: (state) => this.#end(state, new KvError("CANCELLED", { transfer: state, why: "released" })),
    };
  }

  #send(engine: TokenEngine, options: SendOptions): SendTransfer {
    const early = this.#early.offer(engine, options);
    if (early !== undefined) return early;
    const state = `offer-${options.requestId}`;
    const blocks = options.blocks.share();
    const done = new Promise<TransferReport>((resolve, reject) => {
      const end = (error: KvError | null): void => {
        blocks.release();
        if (error === null) resolve(report(options.requestId, options.tokens));
        else reject(error);
      };
      this.offers.set(state, { options, blocks, engine, end, granted: false });
    });
    done.catch(() => {});
    const cancel = (why = "cancelled") => this.#end(state, new KvError("CANCELLED", { transfer: state, why }));
    return { requestId: options.requestId, state, ready: () => {}, finish: () => {}, done, cancel };
  }

  #end(state: string, error: KvError | null): CancelOutcome {
    const offer = this.offers.get(state);
    if (offer === undefined) return "not_found";
    if (offer.granted) return "in_flight";
    this.offers.delete(state);
    offer.end(error);
    return "cancelled";
  }

  #settle(state: string, offer: Offer, error: KvError | null): void {
    offer.granted = false;
    this.offers.delete(state);
    offer.end(error);
  }

  #receive(engine: TokenEngine, options: ReceiveByState & ReceiveBlocks): ReceiveTransfer {
    const offer = this.offers.get(options.state);
    if (offer === undefined) throw new KvError("BAD_STATE", { why: `unknown state ${options.state}` });
    offer.granted = true;
    const target = options.blocks.share();
    let cancelled = false;
    const run = async (): Promise<TransferReport> => {
      try {
        await (this.gate ?? Promise.resolve());
        const failure = this.failNext;
        this.failNext = null;
        if (failure !== null) throw failure;
        if (cancelled) throw new KvError("CANCELLED", { transfer: options.state, why: "receiver" });
        const { skipTokens = 0 } = options;
        engine.fetch(target.ids, { engine: offer.engine, ids: offer.blocks.ids }, skipTokens, offer.options.tokens);
        this.fetchedBlocks += target.ids.length - Math.floor(skipTokens / TOKENS_PER_BLOCK);
        this.fetchedTokens += offer.options.tokens - skipTokens;
        this.#settle(options.state, offer, null);
        return report(offer.options.requestId, offer.options.tokens);
      } catch (error) {
        this.#settle(options.state, offer, new KvError("RECEIVER_FAILED", { transfer: options.state, why: "test" }));
        throw error;
      } finally {
        target.release();
      }
    };
    const done = run();
    done.catch(() => {});
    return {
      requestId: offer.options.requestId,
      tokens: offer.options.tokens,
      done,
      released: done.then(
        () => {},
        () => {},
      ),
      progress: (async function* () {})(),
      cancel: () => {
        cancelled = true;
        return "in_flight";
      },
    };
  }
}
