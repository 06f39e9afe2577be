import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ReadFront } from "../../../src/transceiver/read_front.ts";

const LAYERS = 6;

describe("what a receiver reads next", () => {
  it("is whole tokens while whole tokens are announced", () => {
    const front = new ReadFront({ tokens: 100, skipTokens: 10 }, { from: 0, to: LAYERS });
    expect(front.take()).toBeUndefined();
    expect([front.announce(40), front.announce(40), front.announce(30)]).toEqual([true, false, false]);
    expect(front.take()).toEqual({ fromToken: 10, toToken: 40, layers: null, fullTo: 40 });
    expect(front.take()).toBeUndefined();
    expect(front.announce(200)).toBe(true);
    expect(front.take()).toEqual({ fromToken: 40, toToken: 100, layers: null, fullTo: 100 });
  });

  it("is a chunk's first layers while others are computed, then the rest of it, then what follows", () => {
    const front = new ReadFront({ tokens: 100, skipTokens: 0 }, { from: 0, to: LAYERS });
    expect(front.announceLayers(50, 2)).toBe(true);
    expect(front.take()).toEqual({ fromToken: 0, toToken: 50, layers: { from: 0, to: 2 }, fullTo: 0 });
    expect([front.announceLayers(50, 2), front.announceLayers(50, 5)]).toEqual([false, true]);
    expect(front.take()).toEqual({ fromToken: 0, toToken: 50, layers: { from: 2, to: 5 }, fullTo: 0 });
    front.announce(80);
    expect(front.take()).toEqual({ fromToken: 0, toToken: 50, layers: { from: 5, to: LAYERS }, fullTo: 50 });
    expect(front.take()).toEqual({ fromToken: 50, toToken: 80, layers: null, fullTo: 80 });
    expect([front.take(), front.asked]).toEqual([undefined, 80]);
  });

  it("counts only layers of its own stage", () => {
    const front = new ReadFront({ tokens: 50, skipTokens: 0 }, { from: 2, to: 4 });
    expect([front.announceLayers(50, 1), front.announceLayers(50, 2)]).toEqual([false, false]);
    expect(front.announceLayers(50, 3)).toBe(true);
    expect(front.take()).toEqual({ fromToken: 0, toToken: 50, layers: { from: 2, to: 3 }, fullTo: 0 });
    // Later stages still compute.
    expect(front.announceLayers(50, 4)).toBe(true);
    expect(front.take()).toEqual({ fromToken: 0, toToken: 50, layers: { from: 3, to: 4 }, fullTo: 50 });
    expect([front.announce(50), front.take()]).toEqual([false, undefined]);
  });

  it("is every element once and none before it is visible, whatever is announced in what order and taken when", () => {
    const step = fc.record({
      tokens: fc.integer({ min: 0, max: 24 }),
      layers: fc.option(fc.integer({ min: 0, max: 8 })),
    });
    const span = fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 1, max: 3 }));
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 30 }),
        span,
        fc.integer({ min: 0, max: 20 }),
        (steps, [from, count], skipTokens) => {
          const to = from + count;
          const front = new ReadFront({ tokens: 20, skipTokens }, { from, to });
          const visible = new Set<string>();
          const read = new Set<string>();
          let full = skipTokens;
          const takeAll = (): void => {
            for (let box = front.take(); box !== undefined; box = front.take()) {
              for (let token = box.fromToken; token < box.toToken; token++) {
                for (let layer = box.layers?.from ?? from; layer < (box.layers?.to ?? to); layer++) {
                  const element = `${token} ${layer}`;
                  expect([visible.has(element), read.has(element)]).toEqual([true, false]);
                  read.add(element);
                }
              }
              expect(box.fullTo).toBeGreaterThanOrEqual(full);
              full = box.fullTo;
              for (let token = skipTokens; token < full; token++) {
                for (let layer = from; layer < to; layer++) expect(read.has(`${token} ${layer}`)).toBe(true);
              }
            }
            expect(front.hasMore).toBe(false);
          };
          for (const { tokens, layers } of steps) {
            for (let token = 0; token < tokens; token++) {
              for (let layer = 0; layer < (layers ?? to); layer++) visible.add(`${token} ${layer}`);
            }
            if (layers === null) front.announce(tokens);
            else front.announceLayers(tokens, layers);
            takeAll();
          }
          front.announce(20);
          for (let token = 0; token < 20; token++)
            for (let layer = from; layer < to; layer++) visible.add(`${token} ${layer}`);
          takeAll();
          expect(full).toBe(20);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
