import { describe, expect, it } from "vitest";
import { BlockPool } from "../../../src/kv/pool.ts";
import { type CacheListener, PrefixCache } from "../../../src/worker/prefix_cache.ts";
import { blockHash, keyAfter, type PrefixKey, prefixKeys, ROOT_KEY } from "../../../src/worker/prefix_keys.ts";
import { tokensOf } from "./scheduler_rig.ts";

const SIZE = 4;
const keysOf = (length: number, salt = 0): string[] => prefixKeys(Uint32Array.from(tokensOf(length, salt)), SIZE);

describe("prefix keys", () => {
  it("name full blocks only, and depend on every token before", () => {
    expect(keysOf(11).length).toBe(2);
    const tokens = Uint32Array.from(tokensOf(12));
    const changed = tokens.slice();
    changed[0] = 96;
    const [plain, other] = [prefixKeys(tokens, SIZE), prefixKeys(changed, SIZE)];
    for (const [index, key] of plain.entries()) expect(other[index]).not.toBe(key);
  });

  it("continue from keys that are known", () => {
    const tokens = Uint32Array.from(tokensOf(16));
    expect(prefixKeys(tokens, SIZE, keysOf(8))).toEqual(prefixKeys(tokens, SIZE));
  });

  it("are those of TensorRT-LLM's radix tree", () => {
    // hashlib.sha256(root + token.to_bytes(8, "little") for each token), root = sha256(b"\0").
    const first = keyAfter(ROOT_KEY, Uint32Array.of(1, 2, 3, 70_000));
    expect(first).toBe("498b431b1b4e999bebbc24c2ec4e590e6b5226180db1535ce94be4b8f8632b81");
    const second = keyAfter(first, Uint32Array.of(5, 6));
    expect([blockHash(first), blockHash(second)]).toEqual([5299403170232834459n, 2225221683587153646n]);
  });
});

describe("prefix cache", () => {
  const cacheOf = (blocks: number, listener?: CacheListener) => {
    const pool = new BlockPool({ blocks, blockBytes: 64 });
    const cache = new PrefixCache({ pool, tokensPerBlock: SIZE, listener });
    /** Computes the first `length` tokens of a sequence, as a request does that then ends. */
    const store = (length: number, salt = 0, from = pool.allocate(Math.ceil(length / SIZE))): void => {
      const tokens = Uint32Array.from(tokensOf(length, salt));
      const keys = prefixKeys(tokens, SIZE);
      const rest = tokens.subarray(keys.length * SIZE);
      if (rest.length > 0) keys.push(keyAfter(keys.at(-1) ?? ROOT_KEY, rest));
      cache.insert(keys, tokens, from);
      from.release();
    };
    return { pool, cache, store };
  };
  const found = (cache: PrefixCache, keys: readonly PrefixKey[]): number =>
    cache.match(keys).map((hold) => hold.release()).length;

  it("evicts what was used longest ago, the end of a prefix before its beginning", () => {
    const { cache, store } = cacheOf(8);
    for (const salt of [1, 2]) store(12, salt);
    for (const hold of cache.match(keysOf(12, 1))) hold.release();
    expect(cache.evict(1)).toBe(1);
    expect(found(cache, keysOf(12, 2))).toBe(2);
    // Now 2 was used last: the next three are those of 1.
    expect(cache.evict(3)).toBe(3);
    expect(found(cache, keysOf(12, 1))).toBe(0);
    expect(found(cache, keysOf(12, 2))).toBe(2);
  });

  it("does not evict blocks that a request or an offer holds", () => {
    const { pool, cache, store } = cacheOf(4);
    const [hold, offer] = [pool.allocate(3), pool.allocate(1)];
    offer.release();
    const offered = hold.share(0, 1);
    store(12, 0, hold);
    // The request has ended; the offer still holds the first block.
    expect(cache.evictable()).toBe(2);
    expect(cache.evict(9)).toBe(2);
    expect(pool.references(offered.ids[0] as never)).toBe(2);
    offered.release();
    expect(cache.evictable()).toBe(1);
    expect(cache.evict(9)).toBe(1);
    expect(pool.free).toBe(4);
  });

  it("keeps what leads to a block that is held", () => {
    const { pool, cache, store } = cacheOf(8);
    const own = pool.allocate(2);
    store(4);
    // A second request computed the first block too, but the cache has the block of the other one.
    const later = own.share(1, 2);
    store(8, 0, own);
    expect([cache.size, cache.evictable(), cache.evict(9)]).toEqual([2, 0, 0]);
    later.release();
    expect([cache.evictable(), cache.evict(9)]).toEqual([2, 2]);
    expect(pool.free).toBe(8);
  });

  it("keeps the first block of a key when two requests computed it", () => {
    const { pool, cache, store } = cacheOf(4);
    const [first, second] = [pool.allocate(1), pool.allocate(1)];
    const kept = first.ids[0];
    store(4, 0, first);
    store(4, 0, second);
    const [hold] = cache.match(keysOf(4));
    expect(hold?.ids).toEqual([kept]);
    hold?.release();
    expect(pool.free).toBe(3);
    cache.clear();
    expect(pool.free).toBe(4);
  });

  it("finds the block that begins with most of the tokens wanted", () => {
    const { pool, cache, store } = cacheOf(8);
    store(8);
    store(8, 1);
    const wanted = Uint32Array.from([...tokensOf(8).slice(4, 6), 96, 96]);
    const part = cache.matchPart(keysOf(4)[0] as string, wanted);
    expect(part?.tokens).toBe(2);
    expect(part?.hold.ids).toEqual([1]);
    expect(cache.evictable()).toBe(2);
    part?.hold.release();
    expect(cache.matchPart(keysOf(4)[0] as string, Uint32Array.of(96))).toBeNull();
    expect(cache.matchPart(ROOT_KEY, Uint32Array.from(tokensOf(3, 1)))?.tokens).toBe(3);
    expect(pool.free).toBe(4);
  });

  it("gives a block up that another one holds all of", () => {
    const changes: string[] = [];
    const { pool, cache, store } = cacheOf(8, {
      stored: (blocks) => changes.push(`+${blocks.map(({ tokens }) => tokens.length)}`),
      removed: (keys) => changes.push(`-${keys.length}`),
    });
    store(6);
    // Its end is inside the block that is here; then one that has more; then the whole of it.
    store(5);
    store(7);
    store(8);
    store(7);
    expect(changes).toEqual(["+4,2", "-1", "+3", "-1", "+4"]);
    expect([cache.size, pool.free]).toEqual([2, 6]);
  });
});
