import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { editDistance, nearest } from "../../../src/config/nearest.ts";

describe("did you mean", () => {
  it.each([
    ["disable_overlap_sheduler", "disable_overlap_scheduler"],
    ["max-tokens-in-bufer", "max_tokens_in_buffer"],
    ["backned", "backend"],
    ["PORT", "port"],
    ["prot", "port"],
  ])("%s -> %s", (word, wanted) => {
    expect(nearest(word, ["backend", "disable_overlap_scheduler", "max_tokens_in_buffer", "port"])).toBe(wanted);
  });

  it("stays silent when nothing is near", () => {
    for (const word of ["zebra", "", "x", "a".repeat(10_000)])
      expect(nearest(word, ["port", "backend"])).toBeUndefined();
  });

  it("the distance is a metric of at most the longer word", () => {
    const word = fc.string({ maxLength: 12 });
    fc.assert(
      fc.property(word, word, (a, b) => {
        const distance = editDistance(a, b);
        expect(distance).toBe(editDistance(b, a));
        expect(distance === 0).toBe(a === b);
        expect(distance).toBeGreaterThanOrEqual(Math.abs(a.length - b.length));
        expect(distance).toBeLessThanOrEqual(Math.max(a.length, b.length));
      }),
      { numRuns: 300 },
    );
  });
});
