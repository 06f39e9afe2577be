import { KvError } from "../errors.ts";
import { BlockHold, type BlockPool } from "../kv/pool.ts";
import { type CachedBlock, type CacheListener, PrefixCache } from "./prefix_cache.ts";
import { prefixKeys } from "./prefix_keys.ts";
import type { WorkerRequest } from "./request.ts";

/** Which request holds which blocks, and what the prefix cache keeps of them afterwards. */
export class BlockReservations {
  readonly tokensPerBlock: number;
  readonly #pool: BlockPool;
  readonly #cache: PrefixCache;
  readonly #reuse: boolean;

  constructor(options: {
    readonly pool: BlockPool;
    readonly tokensPerBlock: number;
    readonly reuse: boolean;
    readonly listener?: CacheListener | undefined;
  }) {
    this.tokensPerBlock = options.tokensPerBlock;
    this.#pool = options.pool;
    this.#cache = new PrefixCache(options);
    this.#reuse = options.reuse;
  }

  /** What the prefix cache holds, each block after the one that it extends. */
  get cached(): readonly CachedBlock[] {
    return this.#cache.blocks;
  }

  get cachedBlocks(): number {
    return this.#cache.size;
  }

  get evictableBlocks(): number {
    return this.#cache.evictable();
  }

  readonly blocksFor = (tokens: number): number => Math.ceil(tokens / this.tokensPerBlock);

  /** Blocks of the whole pool. */
  get total(): number {
    return this.#pool.total;
  }

  /** Tokens that the whole pool holds. */
  get capacity(): number {
    return this.#pool.total * this.tokensPerBlock;
  }

  /** Takes all blocks the request may need, reused ones first; false when they are not free, then nothing was taken. */
  reserve(request: WorkerRequest): boolean {
    // One token at least is computed here or fetched: logits come from computing, and a peer's offer ends by a pull.
    const reusable = Math.floor((request.promptTokens - 1) / this.tokensPerBlock);
    const reused = this.#reuse ? this.#cache.match(request.promptKeys.slice(0, reusable)) : [];
    const missing = this.blocksFor(request.tokensReserved) - reused.length;
    const lacking = missing - this.#pool.free;
    if (lacking > 0 && this.#cache.evictable() >= lacking) this.#cache.evict(lacking);
    if (missing > this.#pool.free) {
      for (const hold of reused) hold.release();
      return false;
    }
    request.blocks = BlockHold.join(this.#pool, [...reused, this.#pool.allocate(missing)]);
    request.cachedTokens = reused.length * this.tokensPerBlock;
    request.computedTokens = request.cachedTokens;
    return true;
  }

  /** A hold of its own on the blocks of the prompt alone. */
  sharePrompt(request: WorkerRequest): BlockHold {
    return mustHold(request).share(0, this.blocksFor(request.promptTokens));
  }

  /** Puts the full blocks of the first `tokens` tokens, whose KV is there, into the prefix cache. */
  remember(request: WorkerRequest, tokens: number): void {
    if (!this.#reuse) return;
    const full = Math.floor(tokens / this.tokensPerBlock);
    const prompt = request.promptKeys;
    const keys =
      full <= prompt.length
        ? prompt.slice(0, full)
        : prefixKeys(request.tokens.subarray(0, tokens), this.tokensPerBlock, prompt);
    this.#cache.insert(keys, request.tokens, mustHold(request));
  }

  release(request: WorkerRequest): void {
    request.blocks?.release();
    request.blocks = null;
  }

  forgetPrefixes(): void {
    this.#cache.clear();
  }
}

/** @throws KvError INTERNAL when the request was not admitted, or has ended */
export function mustHold(request: WorkerRequest): BlockHold {
  if (request.blocks === null) {
    throw new KvError("INTERNAL", { where: "scheduler", why: `request ${request.spec.id} holds no blocks` });
  }
  return request.blocks;
}
