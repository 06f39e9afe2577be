import type { BlockHold, BlockPool } from "../kv/pool.ts";
import { type PrefixKey, ROOT_KEY } from "./prefix_keys.ts";

/** One block of the cache. */
export interface CachedBlock {
  readonly key: PrefixKey;
  /** Key of the block before it; `ROOT_KEY`: it is the first. */
  readonly parent: PrefixKey;
  /** What it holds; fewer than a block has room for when a sequence ended inside it. */
  readonly tokens: Uint32Array;
}

/** Told of each change, in order. */
export interface CacheListener {
  /** Blocks that follow each other. */
  stored(blocks: readonly CachedBlock[]): void;
  removed(keys: readonly PrefixKey[]): void;
}

/** The beginning of a cached block whose tokens are wanted. */
export interface PartOfBlock {
  /** The block, which the caller releases. */
  readonly hold: BlockHold;
  /** How many of its tokens, from the first. */
  readonly tokens: number;
}

interface Entry extends CachedBlock {
  readonly hold: BlockHold;
}

/**
 * Blocks whose KV may be used again: a tree, least recently used first. Each entry is a hold of its own: a block in use by a request, by
 * an offer and by the cache has three references. Only an entry that nobody else holds and nothing extends is evicted, so what is here
 * is reachable from the beginning of its sequence.
 */
export class PrefixCache {
  readonly #pool: BlockPool;
  readonly #tokensPerBlock: number;
  readonly #listener: CacheListener | undefined;
  /** Insertion order is the order of use. A prefix is always used after what extends it (see `#touch`), so leaves are evicted first. */
  readonly #entries = new Map<PrefixKey, Entry>();
  readonly #children = new Map<PrefixKey, Set<Entry>>();

  constructor(options: {
    readonly pool: BlockPool;
    readonly tokensPerBlock: number;
    readonly listener?: CacheListener | undefined;
  }) {
    this.#pool = options.pool;
    this.#tokensPerBlock = options.tokensPerBlock;
    this.#listener = options.listener;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** All blocks, each after the one that it extends. */
  get blocks(): readonly CachedBlock[] {
    return [...this.#entries.values()].reverse();
  }

  /** Blocks that `evict` could free now. */
  evictable(): number {
    const needed = new Set<PrefixKey>();
    for (const entry of this.#entries.values()) {
      if (this.#isIdle(entry)) continue;
      let key = entry.key;
      while (!needed.has(key)) {
        const here = this.#entries.get(key);
        if (here === undefined) break;
        needed.add(key);
        key = here.parent;
      }
    }
    return this.#entries.size - needed.size;
  }

  /** Holds on the longest run of `keys` that is here, one block each; the caller releases or joins them. */
  match(keys: readonly PrefixKey[]): BlockHold[] {
    const found: BlockHold[] = [];
    for (const key of keys) {
      const entry = this.#entries.get(key);
      if (entry === undefined) break;
      found.push(entry.hold.share());
    }
    this.#touch(keys.slice(0, found.length));
    return found;
  }

  /** Of the blocks after `parent`, the one that begins with most of `tokens`. */
  matchPart(parent: PrefixKey, tokens: Uint32Array): PartOfBlock | null {
    let best: Entry | undefined;
    let most = 0;
    for (const entry of this.#children.get(parent) ?? []) {
      const common = commonLength(entry.tokens, tokens);
      if (common <= most) continue;
      best = entry;
      most = common;
    }
    return best === undefined ? null : { hold: best.hold.share(), tokens: most };
  }

  /**
   * Remembers the first `keys.length` blocks of `blocks`. A key that is here already keeps its block.
   * @param tokens of the sequence; the last block need not be full
   */
  insert(keys: readonly PrefixKey[], tokens: Uint32Array, blocks: BlockHold): void {
    const size = this.#tokensPerBlock;
    const used: PrefixKey[] = [];
    let run: CachedBlock[] = [];
    for (const [index, key] of keys.entries()) {
      const own = tokens.subarray(index * size, (index + 1) * size);
      const known = this.#entries.get(key) ?? this.#covering(keys[index - 1] ?? ROOT_KEY, own);
      if (known !== undefined) {
        this.#stored(run);
        run = [];
        used.push(known.key);
        continue;
      }
      const hold = blocks.share(index, index + 1);
      // A copy: the request's array is that of a whole conversation.
      const entry: Entry = { key, parent: keys[index - 1] ?? ROOT_KEY, tokens: own.slice(), hold };
      this.#dropCovered(entry);
      this.#entries.set(key, entry);
      this.#childrenOf(entry.parent).add(entry);
      run.push(entry);
      used.push(key);
    }
    this.#stored(run);
    this.#touch(used);
  }

  /** Frees up to `count` blocks that nobody else holds, least recently used first; answers how many. */
  evict(count: number): number {
    const keys: PrefixKey[] = [];
    for (const entry of this.#entries.values()) {
      if (keys.length >= count) break;
      if (!this.#isIdle(entry) || this.#children.has(entry.key)) continue;
      this.#drop(entry);
      keys.push(entry.key);
    }
    this.#removed(keys);
    return keys.length;
  }

  clear(): void {
    const entries = [...this.#entries.values()];
    for (const entry of entries) this.#drop(entry);
    this.#removed(entries.map(({ key }) => key));
  }

  /** A block after `parent` that begins with all of `tokens` and holds more. */
  #covering(parent: PrefixKey, tokens: Uint32Array): Entry | undefined {
    for (const entry of this.#children.get(parent) ?? []) {
      if (commonLength(entry.tokens, tokens) === tokens.length) return entry;
    }
    return undefined;
  }

  /** Blocks that hold nothing which `newer` does not hold too. They were never full, so nothing extends them. */
  #dropCovered(newer: CachedBlock): void {
    const covered = [...(this.#children.get(newer.parent) ?? [])].filter(
      ({ tokens }) => commonLength(tokens, newer.tokens) === tokens.length,
    );
    for (const entry of covered) this.#drop(entry);
    this.#removed(covered.map(({ key }) => key));
  }

  #drop(entry: Entry): void {
    this.#entries.delete(entry.key);
    const siblings = this.#children.get(entry.parent);
    siblings?.delete(entry);
    if (siblings?.size === 0) this.#children.delete(entry.parent);
    entry.hold.release();
  }

  #childrenOf(key: PrefixKey): Set<Entry> {
    const known = this.#children.get(key);
    if (known !== undefined) return known;
    const created = new Set<Entry>();
    this.#children.set(key, created);
    return created;
  }

  #stored(run: readonly CachedBlock[]): void {
    if (run.length > 0) this.#listener?.stored(run);
  }

  #removed(keys: readonly PrefixKey[]): void {
    if (keys.length > 0) this.#listener?.removed(keys);
  }

  /** Deepest first, so that every prefix counts as used later than what extends it. */
  #touch(keys: readonly PrefixKey[]): void {
    for (const key of keys.toReversed()) {
      const entry = this.#entries.get(key);
      if (entry === undefined) continue;
      this.#entries.delete(key);
      this.#entries.set(key, entry);
    }
  }

  #isIdle({ hold }: Entry): boolean {
    const [id] = hold.ids;
    return id !== undefined && this.#pool.references(id) === 1;
  }
}

function commonLength(left: Uint32Array, right: Uint32Array): number {
  const limit = Math.min(left.length, right.length);
  for (let index = 0; index < limit; index++) if (left[index] !== right[index]) return index;
  return limit;
}
