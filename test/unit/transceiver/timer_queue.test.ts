import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TimerQueue } from "../../../src/transceiver/timer_queue.ts";

/** A queue, the alarm's last setting, and its clock. */
function rig() {
  const alarms: number[] = [];
  const queue = new TimerQueue((atMs) => alarms.push(atMs));
  /** Time goes on to `nowMs`: the alarm rings if it was set for then. */
  const until = (nowMs: number): void => {
    while (alarms.length > 0 && (alarms.at(-1) ?? 0) <= nowMs) {
      alarms.length = 0;
      while (queue.fireOne(nowMs));
    }
  };
  return { queue, alarms, until };
}

describe("one alarm for all timers", () => {
  it("fires what is due in the order of time, then of setting, and never what was cleared", () => {
    const operations = fc.array(
      fc.oneof(
        { weight: 4, arbitrary: fc.record({ set: fc.integer({ min: 0, max: 50 }) }) },
        { weight: 3, arbitrary: fc.record({ clear: fc.nat(100) }) },
        { weight: 1, arbitrary: fc.record({ pass: fc.integer({ min: 0, max: 20 }) }) },
      ),
      { maxLength: 200 },
    );
    fc.assert(
      fc.property(operations, (all) => {
        const { queue, until } = rig();
        let now = 0;
        const fired: number[] = [];
        const expected: number[] = [];
        const open: { readonly id: number; readonly atMs: number; readonly clear: () => void }[] = [];
        for (const [id, operation] of all.entries()) {
          if ("set" in operation) {
            const atMs = now + operation.set;
            const timer = queue.add(atMs, () => fired.push(id));
            open.push({ id, atMs, clear: () => timer.clear() });
          } else if ("clear" in operation) {
            const [cleared] = open.splice(operation.clear % (open.length + 1), 1);
            cleared?.clear();
            cleared?.clear();
          } else {
            now += operation.pass;
            until(now);
            const due = open.filter(({ atMs }) => atMs <= now).sort((left, right) => left.atMs - right.atMs);
            expected.push(...due.map(({ id: one }) => one));
            for (const one of due) open.splice(open.indexOf(one), 1);
          }
          expect(fired).toEqual(expected);
          expect(queue.size).toBe(open.length);
        }
      }),
    );
  });

  it("is set only for a timer that is due before all others, so that most transfers never touch it", () => {
    const { queue, alarms } = rig();
    queue.add(100, () => {});
    for (let index = 0; index < 1_000; index++) queue.add(200 + index, () => {}).clear();
    expect(alarms).toEqual([100]);
    queue.add(50, () => {});
    expect(alarms).toEqual([100, 50]);
  });

  it("goes on when a timer throws, and lets it clear and set others", () => {
    const { queue, until } = rig();
    const fired: string[] = [];
    queue.add(1, () => {
      fired.push("first");
      second.clear();
      queue.add(1, () => fired.push("third"));
      throw new Error("first");
    });
    const second = queue.add(1, () => fired.push("second"));
    queue.add(2, () => fired.push("fourth"));
    expect(() => queue.fireOne(5)).toThrow("first");
    while (queue.fireOne(5));
    expect(fired).toEqual(["first", "third", "fourth"]);
    queue.add(7, () => fired.push("fifth"));
    until(7);
    expect(fired.at(-1)).toBe("fifth");
  });
});
