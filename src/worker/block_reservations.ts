import { KvError } from "../errors.ts";
import { BlockHold, type BlockPool } from "../kv/pool.ts";
import { type CachedBlock, type CacheListener, type PartOfBlock, PrefixCache } from "./prefix_cache.ts";
import { keyAfter, prefixKeys, ROOT_KEY } from "./prefix_keys.ts";
import type { WorkerRequest } from "./request.ts";

/** Which request holds which blocks, and what the prefix cache keeps of them afterwards. */
export class BlockReservations {
  readonly tokensPerBlock: number;
  readonly #pool: BlockPool;
  readonly #cache: PrefixCache;
  readonly #reuse: boolean;
  readonly #reuseParts: boolean;

  constructor(options: {
    readonly pool: BlockPool;
    readonly tokensPerBlock: number;
    readonly reuse: boolean;
    /** Blocks that only begin as wanted are copied, and those that are not full are kept too. */
    readonly reuseParts: boolean;
    readonly listener?: CacheListener | undefined;
  }) {
    this.tokensPerBlock = options.tokensPerBlock;
    this.#pool = options.pool;
    this.#cache = new PrefixCache(options);
    this.#reuse = options.reuse;
    this.#reuseParts = options.reuse && options.reuseParts;
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

  /**
   * Takes all blocks the request may need, reused ones first; false when they are not free, then nothing was taken. A `part` that it finds
   * is for the caller to copy and to release.
   */
  reserve(request: WorkerRequest): boolean {
    // One token at least is computed here or fetched: logits come from computing, and a peer's offer ends by a pull.
    const reusable = Math.floor((request.promptTokens - 1) / this.tokensPerBlock);
    const reused = this.#reuse ? this.#cache.match(request.promptKeys.slice(0, reusable)) : [];
    const missing = this.blocksFor(request.tokensReserved) - reused.length;
    let part = this.#partAfter(reused.length, request);
    let isFree = this.#makeRoom(missing);
    if (!isFree && part !== null) {
      // The block that would be copied may be the one that is lacking.
      part.hold.release();
      part = null;
      isFree = this.#makeRoom(missing);
    }
    if (!isFree) {
      for (const hold of reused) hold.release();
      return false;
    }
    request.blocks = BlockHold.join(this.#pool, [...reused, this.#pool.allocate(missing)]);
    request.part = part;
    request.cachedTokens = reused.length * this.tokensPerBlock + (part?.tokens ?? 0);
    request.computedTokens = request.cachedTokens;
    return true;
  }

  #partAfter(blocks: number, { spec: { prompt }, promptKeys }: WorkerRequest): PartOfBlock | null {
    if (!this.#reuseParts) return null;
    const from = blocks * this.tokensPerBlock;
    const wanted = prompt.subarray(from, Math.min(from + this.tokensPerBlock, prompt.length - 1));
    return wanted.length === 0 ? null : this.#cache.matchPart(promptKeys[blocks - 1] ?? ROOT_KEY, wanted);
  }

  #makeRoom(blocks: number): boolean {
    const lacking = blocks - this.#pool.free;
    if (lacking > 0 && this.#cache.evictable() >= lacking) this.#cache.evict(lacking);
    return blocks <= this.#pool.free;
  }

  /** A hold of its own on the blocks of the prompt alone. */
  sharePrompt(request: WorkerRequest): BlockHold {
    return mustHold(request).share(0, this.blocksFor(request.promptTokens));
  }

  /**
   * Puts the full blocks of the first `tokens` tokens, whose KV is there, into the prefix cache.
   * @param isLast nobody writes its blocks any more: the one that is not full may go there too
   */
  remember(request: WorkerRequest, tokens: number, isLast = false): void {
    if (!this.#reuse || request.spec.isProbe) return;
    const full = Math.floor(tokens / this.tokensPerBlock);
    const prompt = request.promptKeys;
    const keys =
      full <= prompt.length
        ? prompt.slice(0, full)
        : prefixKeys(request.tokens.subarray(0, tokens), this.tokensPerBlock, prompt);
    const rest = request.tokens.subarray(full * this.tokensPerBlock, tokens);
    if (isLast && this.#reuseParts && rest.length > 0) keys.push(keyAfter(keys.at(-1) ?? ROOT_KEY, rest));
    this.#cache.insert(keys, request.tokens.subarray(0, tokens), mustHold(request));
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
