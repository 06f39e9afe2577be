import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { BoundedTurns } from "../../../src/transceiver/bounded_turns.ts";

/** Each item takes 0.2 ms of a clock of its own. */
function rig(handle: (item: number) => void = () => {}) {
  let now = 0;
  const seen: (number | string)[] = [];
  const turns = new BoundedTurns<number>(
    (item) => {
      now += 0.2;
      seen.push(item);
      handle(item);
    },
    () => now,
  );
  return { turns, seen };
}

const count = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, index) => from + index);

describe("bounded turns", () => {
  it("handles what fits into one turn at once", () => {
    const { turns, seen } = rig();
    turns.push([1, 2]);
    expect(seen).toEqual([1, 2]);
    expect(turns.isIdle).toBe(true);
  });

  it("lets the event loop turn between the parts of a burst, and keeps the order, also of what comes meanwhile", async () => {
    const { turns, seen } = rig();
    turns.push(count(0, 5));
    expect(seen).toEqual([0, 1, 2]);
    const others = turn().then(() => seen.push("others"));
    turns.push([5, 6]);
    expect(seen).toEqual([0, 1, 2]);
    await Promise.all([turns.idle(), others]);
    expect(seen.filter((item) => item !== "others")).toEqual(count(0, 7));
    expect(seen.indexOf("others")).toBeLessThan(seen.length - 1);
    expect(turns.isIdle).toBe(true);
  });

  it("hands on an item that an item brings, after those that waited before it", () => {
    const { turns, seen } = rig((item) => {
      if (item === 1) turns.push([10]);
    });
    turns.push([1, 2]);
    expect(seen).toEqual([1, 2, 10]);
  });

  it("handles the others although one throws, and throws the first error when the turn ends", () => {
    const { turns, seen } = rig((item) => {
      if (item < 2) throw new Error(`item ${item}`);
    });
    expect(() => turns.push([0, 1, 2])).toThrow("item 0");
    expect(seen).toEqual([0, 1, 2]);
    expect(turns.isIdle).toBe(true);
  });

  it("forgets what waits when told so", async () => {
    const { turns, seen } = rig();
    turns.push(count(0, 10));
    turns.clear();
    await turns.idle();
    expect(seen).toEqual([0, 1, 2]);
  });
});
