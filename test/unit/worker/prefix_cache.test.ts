import { describe, expect, it } from "vitest";
import { BlockPool } from "../../../src/kv/pool.ts";
import { PrefixCache, prefixKeys } from "../../../src/worker/prefix_cache.ts";
import { tokensOf } from "./scheduler_rig.ts";

const keysOf = (length: number, salt = 0): string[] => prefixKeys(Uint32Array.from(tokensOf(length, salt)), 4);

describe("prefix keys", () => {
  it("name full blocks only, and depend on every token before", () => {
    expect(keysOf(11).length).toBe(2);
    const tokens = Uint32Array.from(tokensOf(12));
    const changed = tokens.slice();
    changed[0] = 96;
    const [plain, other] = [prefixKeys(tokens, 4), prefixKeys(changed, 4)];
    for (const [index, key] of plain.entries()) expect(other[index]).not.toBe(key);
  });

  it("continue from keys that are known", () => {
    const tokens = Uint32Array.from(tokensOf(16));
    expect(prefixKeys(tokens, 4, keysOf(8))).toEqual(prefixKeys(tokens, 4));
  });
});

describe("prefix cache", () => {
  it("evicts what was used longest ago, the end of a prefix before its beginning", () => {
    const pool = new BlockPool({ blocks: 8, blockBytes: 64 });
    const cache = new PrefixCache(pool);
    for (const salt of [1, 2]) {
      const hold = pool.allocate(3);
      cache.insert(keysOf(12, salt), hold);
      hold.release();
    }
    for (const hold of cache.match(keysOf(12, 1))) hold.release();
    expect(cache.evict(1)).toBe(1);
    expect(cache.match(keysOf(12, 2)).map((hold) => hold.release()).length).toBe(2);
    // Now 2 was used last: the next three are those of 1.
    expect(cache.evict(3)).toBe(3);
    expect(cache.match(keysOf(12, 1))).toEqual([]);
    expect(cache.match(keysOf(12, 2)).map((hold) => hold.release()).length).toBe(2);
  });

  it("does not evict blocks that a request holds", () => {
    const pool = new BlockPool({ blocks: 4, blockBytes: 64 });
    const cache = new PrefixCache(pool);
    const hold = pool.allocate(3);
    cache.insert(keysOf(12), hold);
    expect(cache.evictable()).toBe(0);
    expect(cache.evict(3)).toBe(0);
    hold.release();
    expect(cache.evictable()).toBe(3);
    expect(cache.evict(9)).toBe(3);
    expect(pool.free).toBe(4);
  });

  it("keeps the first block of a key when two requests computed it", () => {
    const pool = new BlockPool({ blocks: 4, blockBytes: 64 });
    const cache = new PrefixCache(pool);
    const [first, second] = [pool.allocate(1), pool.allocate(1)];
    cache.insert(keysOf(4), first);
    cache.insert(keysOf(4), second);
    second.release();
    first.release();
    expect(pool.free).toBe(3);
    cache.clear();
    expect(pool.free).toBe(4);
  });
});
