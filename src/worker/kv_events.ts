import type { JsonObject } from "../openai/index.ts";
import type { PrefixKey } from "./prefix_cache.ts";

/** Name of `blockHash` in events and `/server_info`. */
export const KV_CACHE_HASH_ALGO = "v2_sha256_64";

/** The first 64 bits of the key's SHA-256, big-endian, unsigned. */
export const blockHash = (key: PrefixKey): bigint => BigInt(`0x${key.slice(0, 16)}`);

/** A block of the cache, and the one before it in its sequence; null: it is the first. */
export interface CachedBlock {
  readonly key: PrefixKey;
  readonly parent: PrefixKey | null;
}

/** Told of each change of a prefix cache, in order. */
export interface CacheListener {
  /** Blocks that follow each other; `parent` comes before the first. */
  stored(parent: PrefixKey | null, keys: readonly PrefixKey[]): void;
  removed(keys: readonly PrefixKey[]): void;
}

/**
 * Changes of the prefix cache, for a router that follows what is here (`POST /kv_cache_events`). Nothing is kept until somebody asks.
 * The first answer, and the next one after more than `limit` events that nobody fetched, is `created` and the whole cache in `stored`
 * events: `created` says that what was known before is void. So replaying all answers always gives what the cache holds.
 */
export class KvEvents implements CacheListener {
  readonly #limit: number;
  readonly #blocks: number;
  /** null: the next answer starts with the whole cache. */
  #events: JsonObject[] | null = null;
  #lastId = -1;

  /**
   * @param limit `event_buffer_max_size`; 0: there are no events
   * @param blocks of the pool
   */
  constructor(limit: number, blocks: number) {
    this.#limit = limit;
    this.#blocks = blocks;
  }

  stored(parent: PrefixKey | null, keys: readonly PrefixKey[]): void {
    this.#add(storedData(parent, keys));
  }

  removed(keys: readonly PrefixKey[]): void {
    this.#add({ type: "removed", block_hashes: keys.map(blockHash) });
  }

  /**
   * Events since the last call, which are forgotten.
   * @param cached all blocks of the cache, each after its parent
   */
  drain(cached: () => Iterable<CachedBlock>): JsonObject[] {
    if (this.#limit === 0) return [];
    const events = this.#events ?? [this.#event(this.#created()), ...this.#all(cached())];
    this.#events = [];
    return events;
  }

  #created(): JsonObject {
    return { type: "created", num_blocks_per_cache_level: [this.#blocks], hash_algo: KV_CACHE_HASH_ALGO };
  }

  *#all(cached: Iterable<CachedBlock>): Iterable<JsonObject> {
    for (const { parent, key } of cached) yield this.#event(storedData(parent, [key]));
  }

  #add(data: JsonObject): void {
    if (this.#events === null) return;
    if (this.#events.length < this.#limit) this.#events.push(this.#event(data));
    else this.#events = null;
  }

  #event(data: JsonObject): JsonObject {
    return { event_id: ++this.#lastId, data };
  }
}

function storedData(parent: PrefixKey | null, keys: readonly PrefixKey[]): JsonObject {
  return {
    type: "stored",
    parent_hash: parent === null ? null : blockHash(parent),
    blocks: keys.map((key) => ({ type: "stored_block", block_hash: blockHash(key) })),
  };
}
