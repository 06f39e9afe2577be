import { describe, expect, it } from "vitest";
import { nextAttempt, type TransferId } from "../../../src/ids.ts";
import {
  DIGESTS_LIMIT,
  DigestComparison,
  OwedDigests,
  partsOf,
  rangesToVerify,
} from "../../../src/transceiver/verification.ts";

/** Transfer ids of a fixed sequence (xorshift32), first attempt. */
function transferIds(count: number): TransferId[] {
  let state = 0x9e3779b9;
  const word = (): string => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0).toString(16).padStart(8, "0");
  };
  return Array.from({ length: count }, () => `${word()}${word()}${word()}${word()}00000000` as TransferId);
}
const [id = "" as TransferId] = transferIds(1);
const digestsOf = (...values: number[]): Uint8Array => Uint8Array.from(values.flatMap((value) => Array(8).fill(value)));

describe("the blocks of a pull that are compared", () => {
  it("are none, or all with the tokens that are pulled of them", () => {
    const pulled = { from: 40, to: 150, tokensPerBlock: 32 };
    expect([...rangesToVerify("off", id, pulled)]).toEqual([]);
    expect([...rangesToVerify("full", id, pulled)]).toEqual([40, 64, 64, 96, 96, 128, 128, 150]);
    expect([...rangesToVerify("full", id, { ...pulled, from: 150 })]).toEqual([]);
  });

  it("are one in 16 of a sample, independent of block and transfer, and the same ones in each attempt", () => {
    const blocks = 256;
    const hits = new Uint32Array(blocks);
    const ids = transferIds(1_000);
    for (const transfer of ids) {
      const ranges = rangesToVerify("sampled", transfer, { from: 0, to: 32 * blocks, tokensPerBlock: 32 });
      expect(
        rangesToVerify("sampled", nextAttempt(transfer), { from: 0, to: 32 * blocks, tokensPerBlock: 32 }),
      ).toEqual(ranges);
      for (let at = 0; at < ranges.length; at += 2) {
        const block = (ranges[at] ?? 0) / 32;
        hits[block] = (hits[block] ?? 0) + 1;
      }
    }
    const total = hits.reduce((sum, count) => sum + count, 0);
    const expected = (ids.length * blocks) / 16;
    // Five standard deviations of the binomial distribution, in all and for each block.
    expect(Math.abs(total - expected)).toBeLessThan(5 * Math.sqrt(expected * (15 / 16)));
    const each = ids.length / 16;
    for (const count of hits) expect(Math.abs(count - each)).toBeLessThan(5 * Math.sqrt(each * (15 / 16)));
  });

  it("does not depend on where in the sequence the pull starts", () => {
    for (const transfer of transferIds(50)) {
      const all = rangesToVerify("sampled", transfer, { from: 0, to: 3200, tokensPerBlock: 32 });
      const tail = rangesToVerify("sampled", transfer, { from: 1600, to: 3200, tokensPerBlock: 32 });
      expect([...tail]).toEqual([...all].filter((_, at) => (all[at - (at % 2)] ?? 0) >= 1600));
    }
  });
});

describe("digests that a sender owes", () => {
  it("are due once their block is complete, each once, in order", () => {
    const owed = new OwedDigests(Uint32Array.of(8, 32, 32, 64, 64, 80));
    expect(owed.due(31)).toBeNull();
    expect(owed.due(63)).toEqual({ first: 0, ranges: Uint32Array.of(8, 32) });
    expect(owed.due(63)).toBeNull();
    expect(owed.due(80)).toEqual({ first: 1, ranges: Uint32Array.of(32, 64, 64, 80) });
  });

  it("travel in as many parts as the frame limit asks for", () => {
    const bytes = new Uint8Array(8 * (2 * DIGESTS_LIMIT + 3));
    const parts = [...partsOf({ first: 5, bytes })];
    expect(parts.map(({ first, bytes: part }) => [first, part.length / 8])).toEqual([
      [5, DIGESTS_LIMIT],
      [5 + DIGESTS_LIMIT, DIGESTS_LIMIT],
      [5 + 2 * DIGESTS_LIMIT, 3],
    ]);
  });
});

describe("a comparison", () => {
  const ranges = Uint32Array.of(0, 32, 64, 96, 96, 100);

  it("takes the sender's digests in any order, and names the ranges that differ", () => {
    const comparison = new DigestComparison(ranges);
    comparison.takeTheirs({ first: 1, bytes: digestsOf(2, 3) });
    expect(comparison.hasTheirs).toBe(false);
    comparison.takeOwn(digestsOf(1, 9, 3));
    expect(comparison.isComplete).toBe(false);
    comparison.takeTheirs({ first: 0, bytes: digestsOf(1) });
    expect(comparison.isComplete).toBe(true);
    expect(comparison.differences()).toEqual([{ from: 64, to: 96 }]);
  });

  it("ignores digests that it did not ask for, twice the same, and half ones", () => {
    const comparison = new DigestComparison(ranges);
    comparison.takeTheirs({ first: 2, bytes: digestsOf(3, 4, 5) });
    comparison.takeTheirs({ first: 2, bytes: digestsOf(3) });
    comparison.takeTheirs({ first: 0, bytes: new Uint8Array(7) });
    expect(comparison.hasTheirs).toBe(false);
  });

  it("of a dead sender's block compares what came of it", () => {
    const comparison = new DigestComparison(ranges);
    comparison.takeTheirs({ first: 0, bytes: digestsOf(1) });
    comparison.waiveMissing();
    comparison.takeOwn(digestsOf(7, 8, 9));
    expect(comparison.isComplete).toBe(true);
    expect(comparison.differences()).toEqual([{ from: 0, to: 32 }]);
  });
});
