import { describe, expect, it } from "vitest";
import { requestIdToBigInt } from "../../../src/ids.ts";
import { ContextIds } from "../../../src/worker/context_ids.ts";

describe("context request ids", () => {
  it("never come twice, also when the clock stands still or goes back", () => {
    let now = 1_800_000_000_000;
    const ids = new ContextIds({ nowMs: () => now });
    const seen = new Set<string>();
    for (let index = 0; index < 10_000; index++) {
      if (index === 5_000) now -= 1_000;
      seen.add(ids.next());
    }
    expect(seen.size).toBe(10_000);
  });

  it("lie in [2^40, 2^63), as those of TensorRT-LLM do", () => {
    for (const nowMs of [1_735_689_600_000 + 70_000, Date.now(), 1_735_689_600_000 + 2 ** 39 - 2]) {
      const id = requestIdToBigInt(new ContextIds({ nowMs: () => nowMs }).next());
      expect(id).toBeGreaterThanOrEqual(2n ** 40n);
      expect(id).toBeLessThan(2n ** 63n);
    }
  });

  it("count up from the one that a test gives", () => {
    const ids = new ContextIds({ first: 2n ** 62n + 1n });
    expect([ids.next(), ids.next()].map(requestIdToBigInt)).toEqual([2n ** 62n + 1n, 2n ** 62n + 2n]);
  });
});
