import type { JsonObject } from "../openai/index.ts";
import type { CachedBlock, CacheListener } from "./prefix_cache.ts";
import { blockHash, KV_CACHE_HASH_ALGO, type PrefixKey, ROOT_KEY } from "./prefix_keys.ts";

/** Events that wait for a reader when `event_buffer_max_size` is not given and somebody has asked for them. */
const DEFAULT_LIMIT = 1024;
/** kDefaultRetentionPriority of TensorRT-LLM: we have one priority only. */
const PRIORITY = 35;

type Change =
  | { readonly type: "created" }
  | { readonly type: "stored"; readonly blocks: readonly CachedBlock[] }
  | { readonly type: "removed"; readonly keys: readonly PrefixKey[] };

export interface KvEventOptions {
  /** `event_buffer_max_size`; 0: there are no events; null: they begin when a reader first asks. */
  readonly limit: number | null;
  /** Of the pool. */
  readonly blocks: number;
  /** Tokens that attention sees. */
  readonly windowSize: number;
}

/**
 * Changes of the prefix cache, for a router that follows what is here (`POST /kv_cache_events`, trtllm-protocol.md section 2.5). A read
 * forgets what it has given. When more than `limit` events wait, all of them are dropped, which shows as a gap in the ids, and the next
 * read says in `removed` and `stored` events what is different from what was read before: so applying all answers in order always gives
 * what the cache holds, which a queue that drops its oldest events (TensorRT-LLM's) can't promise.
 */
export class KvEvents implements CacheListener {
  readonly #options: KvEventOptions;
  readonly #limit: number;
  /** 0 is `created`, the first that a reader gets. */
  #nextId = 1;
  /** null: they were dropped, or nobody has asked yet. */
  #waiting: { readonly id: number; readonly change: Change }[] | null = null;
  /** What the reader knows of. */
  readonly #told = new Set<PrefixKey>();
  #isCreatedTold = false;
  #dropped = 0;

  constructor(options: KvEventOptions) {
    this.#options = options;
    this.#limit = options.limit ?? DEFAULT_LIMIT;
    if (options.limit !== null) this.#waiting = [];
  }

  /** Events that no reader got because too many waited. */
  get dropped(): number {
    return this.#dropped;
  }

  stored(blocks: readonly CachedBlock[]): void {
    this.#add({ type: "stored", blocks });
  }

  removed(keys: readonly PrefixKey[]): void {
    this.#add({ type: "removed", keys });
  }

  /**
   * Events since the last call.
   * @param cached all blocks of the cache, each after its parent
   */
  drain(cached: readonly CachedBlock[]): JsonObject[] {
    if (this.#limit === 0) return [];
    const waiting = this.#waiting ?? this.#differences(cached);
    this.#waiting = [];
    if (!this.#isCreatedTold) waiting.unshift({ id: 0, change: { type: "created" } });
    this.#isCreatedTold = true;
    for (const { change } of waiting) this.#note(change);
    return waiting.map(({ id, change }) => ({
      event_id: id,
      data: this.#dataOf(change),
      window_size: this.#options.windowSize,
      hash_algo: KV_CACHE_HASH_ALGO,
    }));
  }

  #add(change: Change): void {
    if (this.#limit === 0 || this.#waiting === null) return;
    this.#waiting.push({ id: this.#nextId++, change });
    if (this.#waiting.length <= this.#limit) return;
    this.#dropped += this.#waiting.length;
    this.#waiting = null;
  }

  #differences(cached: readonly CachedBlock[]) {
    const here = new Set(cached.map(({ key }) => key));
    const gone = [...this.#told].filter((key) => !here.has(key));
    const changes: Change[] = gone.length === 0 ? [] : [{ type: "removed", keys: gone }];
    let run: CachedBlock[] = [];
    for (const block of cached) {
      if (this.#told.has(block.key)) continue;
      if (run.at(-1)?.key !== block.parent) {
        run = [];
        changes.push({ type: "stored", blocks: run });
      }
      run.push(block);
    }
    return changes.map((change) => ({ id: this.#nextId++, change }));
  }

  #note(change: Change): void {
    if (change.type === "stored") for (const { key } of change.blocks) this.#told.add(key);
    if (change.type === "removed") for (const key of change.keys) this.#told.delete(key);
  }

  #dataOf(change: Change): JsonObject {
    if (change.type === "created") return { type: "created", num_blocks_per_cache_level: [this.#options.blocks] };
    if (change.type === "removed") return { type: "removed", block_hashes: change.keys.map(blockHash) };
    const parent = change.blocks[0]?.parent ?? ROOT_KEY;
    return {
      type: "stored",
      parent_hash: parent === ROOT_KEY ? null : blockHash(parent),
      // Without `tokens`, which no router reads: they would give everybody's prompts to whoever can reach this worker.
      blocks: change.blocks.map(({ key }) => ({
        type: "stored_block",
        block_hash: blockHash(key),
        cache_level: 0,
        priority: PRIORITY,
      })),
    };
  }
}
