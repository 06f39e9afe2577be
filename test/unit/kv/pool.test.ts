import { describe, expect, it } from "vitest";
import { BlockPool } from "../../../src/kv/pool.ts";

describe("blocks that an engine gives out by their ids", () => {
  it("are held in the order given until every hold of them has ended", () => {
    const pool = new BlockPool({ blocks: 8, blockBytes: 64 });
    const all = pool.allocate(8);
    const some = pool.share([6, 1, 3]);
    expect(some.ids).toEqual([6, 1, 3]);
    all.release();
    expect(pool.free).toBe(5);
    some.release();
    expect(pool.free).toBe(8);
  });

  it.each([[[0, 5]], [[8]], [[-1]], [[0.5]]])("must be held already: %j is refused, and nothing was taken", (ids) => {
    const pool = new BlockPool({ blocks: 8, blockBytes: 64 });
    using held = pool.allocate(2);
    expect(() => pool.share(ids)).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
    expect(held.ids.map((id) => pool.references(id))).toEqual([1, 1]);
  });
});
