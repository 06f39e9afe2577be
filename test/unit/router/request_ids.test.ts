import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GLOBAL_ID_LIMIT, GLOBAL_ID_MIN, RequestIds } from "../../../src/router/request_ids.ts";

const at = (iso: string) => Date.parse(iso);
const timeOf = (id: bigint): bigint => id >> 24n;

describe("request ids", () => {
  it("carry node, process and counter in the bits of trtllm-serve's ids", () => {
    const ids = new RequestIds({
      node: 0xab,
      process: 0x2a,
      counterOrigin: 6,
      wallMs: () => at("2026-11-25T00:00:00Z"),
    });
    const id = ids.next();
    expect(id & 0x3ffn).toBe(7n);
    expect((id >> 10n) & 0x3fn).toBe(0x2an);
    expect((id >> 16n) & 0xffn).toBe(0xabn);
    const ms = BigInt(at("2026-11-25T00:00:00Z") - at("2025-01-01T00:00:00Z"));
    expect(timeOf(id)).toBe(ms + (GLOBAL_ID_MIN >> 24n));
  });

  it("never repeat and never fall, also when the clock stands still or goes back and a millisecond gets more than 1024", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: -50, max: 50 }), { minLength: 5, maxLength: 40 }),
        fc.integer({ min: 0, max: 1023 }),
        (steps, counterOrigin) => {
          let now = at("2026-01-01T00:00:00Z");
          const ids = new RequestIds({ node: 3, counterOrigin, wallMs: () => now });
          const seen = new Set<bigint>();
          let last = 0n;
          for (const step of steps) {
            now += step;
            for (let i = 0; i < 150; i++) {
              const id = ids.next();
              if (timeOf(id) < timeOf(last)) throw new Error(`${id} is older than ${last}`);
              seen.add(id);
              last = id;
            }
          }
          expect(seen.size).toBe(steps.length * 150);
        },
      ),
      { numRuns: 50 },
    );
  });

  it("stay within [2^40, 2^63) at any wall clock, where workers expect the ids of routers", () => {
    for (const wall of [0, at("2025-01-01T00:00:00Z"), at("2042-06-03T00:00:00Z"), at("2300-01-01T00:00:00Z")]) {
      const id = new RequestIds({ node: 255, process: 63, counterOrigin: 1023, wallMs: () => wall }).next();
      expect(id).toBeGreaterThanOrEqual(GLOBAL_ID_MIN);
      expect(id).toBeLessThan(GLOBAL_ID_LIMIT);
    }
  });

  it("differ between two nodes in the same millisecond", () => {
    const wallMs = () => at("2026-01-01T00:00:00Z");
    const one = new RequestIds({ node: 1, counterOrigin: 0, wallMs });
    const two = new RequestIds({ node: 2, counterOrigin: 0, wallMs });
    expect(one.next()).not.toBe(two.next());
  });
});
