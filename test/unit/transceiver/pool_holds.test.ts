import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isKvError } from "../../../src/errors.ts";
import { BlockHold, BlockPool } from "../../../src/kv/pool.ts";

const BLOCKS = 12;
const internal = expect.toSatisfy((error: unknown) => isKvError(error) && error.code === "INTERNAL");

/** Each step takes its operands from the holds that are there, by these numbers. */
const step = fc.record({
  what: fc.constantFrom("allocate", "share", "join", "release"),
  first: fc.nat(100),
  second: fc.nat(100),
  count: fc.nat(5),
});

describe("holds on blocks", () => {
  it("any sequence of allocate, share, join and release counts right and hands out no block twice", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const handedOut = new Set<number>();
        const pool = new BlockPool({
          blocks: BLOCKS,
          blockBytes: 64,
          hooks: {
            taken: (ids) => {
              for (const id of ids) {
                expect(handedOut.has(id), `block ${id} is handed out twice`).toBe(false);
                handedOut.add(id);
              }
            },
            freed: (ids) => {
              for (const id of ids) expect(handedOut.delete(id), `block ${id} is freed twice`).toBe(true);
            },
          },
        });
        const holds: BlockHold[] = [];
        const pick = (number: number): BlockHold | undefined => holds[number % Math.max(1, holds.length)];
        for (const { what, first, second, count } of steps) {
          const hold = pick(first);
          if (what === "allocate") {
            const { free } = pool;
            if (count > free) {
              expect(() => pool.allocate(count)).toThrow(/block/);
              expect(pool.free).toBe(free);
            } else {
              holds.push(pool.allocate(count));
            }
          } else if (what === "share" && hold !== undefined) {
            holds.push(hold.share(0, second % (hold.ids.length + 1)));
          } else if (what === "join" && hold !== undefined) {
            const parts = [...new Set([hold, pick(second) ?? hold])];
            const joined = BlockHold.join(pool, parts);
            for (const part of parts) {
              expect(part.released).toBe(true);
              holds.splice(holds.indexOf(part), 1);
            }
            holds.push(joined);
          } else if (hold !== undefined) {
            hold.release();
            // A second release of one hold takes nothing from the others.
            hold.release();
            holds.splice(holds.indexOf(hold), 1);
          }
          const counts = new Map<number, number>();
          for (const { ids } of holds) for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
          for (const id of Array.from({ length: BLOCKS }, (_, index) => index)) {
            expect(pool.references(id as never)).toBe(counts.get(id) ?? 0);
          }
          expect(pool.free).toBe(BLOCKS - counts.size);
          expect(handedOut).toEqual(new Set(counts.keys()));
        }
        for (const hold of holds) hold.release();
        expect(pool.free).toBe(BLOCKS);
      }),
      { numRuns: 400 },
    );
  });

  it("giving back a block that is free, or sharing one, is an INTERNAL defect that names it", () => {
    const pool = new BlockPool({ blocks: 2, blockBytes: 64 });
    const hold = pool.allocate(1);
    const { ids } = hold;
    hold.release();
    expect(() => pool.release(ids)).toThrow(internal);
    expect(() => pool.retain(ids)).toThrow(internal);
    expect(pool.free).toBe(2);
    expect(() => hold.share()).toThrow(/has been closed|closed/);
    expect(() => BlockHold.join(pool, [hold])).toThrow(/closed/);
  });
});
