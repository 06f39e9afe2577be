import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BlockPool } from "../../../src/kv/pool.ts";
import type { JsonObject } from "../../../src/openai/index.ts";
import { KvEvents } from "../../../src/worker/kv_events.ts";
import { PrefixCache } from "../../../src/worker/prefix_cache.ts";
import { blockHash, prefixKeys } from "../../../src/worker/prefix_keys.ts";
import { tokensOf } from "./scheduler_rig.ts";

const SIZE = 4;

function followed(limit: number | null, blocks = 16) {
  const pool = new BlockPool({ blocks, blockBytes: 64 });
  const events = new KvEvents({ limit, blocks, windowSize: 256 });
  const cache = new PrefixCache({ pool, tokensPerBlock: SIZE, listener: events });
  const store = (length: number, salt = 0): void => {
    const hold = pool.allocate(Math.ceil(length / SIZE));
    const tokens = Uint32Array.from(tokensOf(length, salt));
    cache.insert(prefixKeys(tokens, SIZE), tokens, hold);
    hold.release();
  };
  return { cache, events, store, pool, read: () => events.drain(cache.blocks) };
}

const hashesOf = (length: number, salt = 0): bigint[] =>
  prefixKeys(Uint32Array.from(tokensOf(length, salt)), SIZE).map(blockHash);
const dataOf = (events: readonly JsonObject[]) => events.map(({ data }) => data);
const stored = (parent: bigint | null, hashes: readonly bigint[]) => ({
  type: "stored",
  parent_hash: parent,
  blocks: hashes.map((block_hash) => ({ type: "stored_block", block_hash, cache_level: 0, priority: 35 })),
});

describe("KV events", () => {
  it("say in order what was stored and removed, once, with ids that count up", () => {
    const { store, cache, read } = followed(8);
    store(8);
    store(12);
    cache.evict(1);
    const [a, b, c] = hashesOf(12) as [bigint, bigint, bigint];
    const events = read();
    expect(dataOf(events)).toEqual([
      { type: "created", num_blocks_per_cache_level: [16] },
      stored(null, [a, b]),
      stored(b, [c]),
      { type: "removed", block_hashes: [c] },
    ]);
    expect(events[1]).toMatchObject({ window_size: 256, hash_algo: "v2_sha256_64" });
    expect(read()).toEqual([]);
    store(12);
    expect(read()).toMatchObject([{ event_id: 4, data: stored(b, [c]) }]);
  });

  it("begin with the whole cache when a reader first asks and no size was given", () => {
    const { store, cache, read } = followed(null);
    store(8);
    cache.evict(1);
    expect(dataOf(read())).toEqual([{ type: "created", num_blocks_per_cache_level: [16] }, stored(null, hashesOf(4))]);
    store(4, 1);
    expect(dataOf(read())).toEqual([stored(null, hashesOf(4, 1))]);
  });

  it("are none with a size of 0", () => {
    const { store, read } = followed(0);
    store(8);
    expect([read(), read()]).toEqual([[], []]);
  });

  it("after too many unread ones say the difference to what was read, and how many were dropped", () => {
    const { store, cache, events, read } = followed(2);
    store(8);
    read();
    for (const salt of [1, 2, 3]) store(4, salt);
    cache.evict(2);
    expect(events.dropped).toBe(3);
    const late = read();
    const [a, b] = hashesOf(8) as [bigint, bigint];
    expect(dataOf(late)).toEqual([
      { type: "removed", block_hashes: [a, b] },
      ...[3, 2, 1].map((salt) => stored(null, hashesOf(4, salt))),
    ]);
    // created, stored, three that were dropped
    expect(late[0]?.event_id).toBe(5);
  });

  it("applied in order always give what the cache holds, whenever they are read", () => {
    const step = fc.oneof(
      fc.record({ salt: fc.integer({ min: 0, max: 3 }), length: fc.integer({ min: 4, max: 20 }) }),
      fc.record({ evict: fc.integer({ min: 1, max: 6 }) }),
      fc.constant("read" as const),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.constantFrom(null, 1, 2, 5, 100), (steps, limit) => {
        const { cache, store, pool, read } = followed(limit, 24);
        const known = new Set<bigint>();
        let lastId = -1;
        const apply = (): void => {
          for (const { event_id, data } of read() as {
            event_id: number;
            data: ReturnType<typeof stored> & { block_hashes: bigint[] };
          }[]) {
            expect(event_id).toBeGreaterThan(lastId);
            lastId = event_id;
            if (data.type === "removed") for (const hash of data.block_hashes) expect(known.delete(hash)).toBe(true);
            if (data.type !== "stored") continue;
            if (data.parent_hash !== null) expect(known).toContain(data.parent_hash);
            for (const { block_hash } of data.blocks) known.add(block_hash);
          }
          expect(known).toEqual(new Set(cache.blocks.map(({ key }) => blockHash(key))));
        };
        for (const next of [...steps, "read" as const]) {
          if (next === "read") apply();
          else if ("evict" in next) cache.evict(next.evict);
          else {
            const missing = Math.ceil(next.length / SIZE) - pool.free;
            if (missing > 0) cache.evict(missing);
            store(next.length, next.salt);
          }
        }
      }),
      { numRuns: 300 },
    );
  });
});
