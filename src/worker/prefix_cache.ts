import { createHash } from "node:crypto";
import type { BlockHold, BlockPool } from "../kv/pool.ts";

/** Names the tokens from 0 to the end of one full block: SHA-256 over the previous block's key and this block's token ids. */
export type PrefixKey = string;

/** Keys of the full blocks of `tokens`, in order. A key names the whole prefix, so equal keys mean equal KV. */
export function prefixKeys(tokens: Uint32Array, tokensPerBlock: number, from: readonly PrefixKey[] = []): PrefixKey[] {
  const keys = [...from];
  for (let block = keys.length; (block + 1) * tokensPerBlock <= tokens.length; block++) {
    const ids = tokens.subarray(block * tokensPerBlock, (block + 1) * tokensPerBlock);
    const hash = createHash("sha256");
    hash.update(keys[block - 1] ?? "");
    hash.update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
    keys.push(hash.digest("base64"));
  }
  return keys;
}

/**
 * Full blocks whose KV may be used again, least recently used first. Each entry is a hold of its own: a block in use by a request and
 * by the cache has two references, and evicting it frees nothing until the request ends.
 */
export class PrefixCache {
  readonly #pool: BlockPool;
  /** Insertion order is the order of use. A prefix is always used after what extends it (see `#touch`), so leaves are evicted first. */
  readonly #entries = new Map<PrefixKey, BlockHold>();

  constructor(pool: BlockPool) {
    this.#pool = pool;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** Blocks that `evict` could free now. */
  evictable(): number {
    let count = 0;
    for (const hold of this.#entries.values()) if (this.#isIdle(hold)) count++;
    return count;
  }

  /** Holds on the longest run of `keys` that is here, one block each; the caller releases or joins them. */
  match(keys: readonly PrefixKey[]): BlockHold[] {
    const found: BlockHold[] = [];
    for (const key of keys) {
      const entry = this.#entries.get(key);
      if (entry === undefined) break;
      found.push(entry.share());
    }
    this.#touch(keys.slice(0, found.length));
    return found;
  }

  /** Remembers the first `keys.length` blocks of `blocks`. A key that is here already keeps its block. */
  insert(keys: readonly PrefixKey[], blocks: BlockHold): void {
    for (const [index, key] of keys.entries()) {
      if (!this.#entries.has(key)) this.#entries.set(key, blocks.share(index, index + 1));
    }
    this.#touch(keys);
  }

  /** Frees up to `count` blocks that nobody else holds, least recently used first; answers how many. */
  evict(count: number): number {
    let freed = 0;
    for (const [key, hold] of this.#entries) {
      if (freed >= count) break;
      if (!this.#isIdle(hold)) continue;
      this.#entries.delete(key);
      hold.release();
      freed++;
    }
    return freed;
  }

  clear(): void {
    for (const hold of this.#entries.values()) hold.release();
    this.#entries.clear();
  }

  /** Deepest first, so that every prefix counts as used later than what extends it. */
  #touch(keys: readonly PrefixKey[]): void {
    for (const key of keys.toReversed()) {
      const hold = this.#entries.get(key);
      if (hold === undefined) continue;
      this.#entries.delete(key);
      this.#entries.set(key, hold);
    }
  }

  #isIdle(hold: BlockHold): boolean {
    const [id] = hold.ids;
    return id !== undefined && this.#pool.references(id) === 1;
  }
}
