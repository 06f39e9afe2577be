import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OVERTAKEN_MAX, PullTurns, type PullWaiter } from "../../../src/transceiver/pull_turns.ts";

class Pull implements PullWaiter {
  readonly name: string;
  readonly peer: string;
  readonly size: number;
  readonly #got: string[];

  constructor(name: string, got: string[], options: { readonly peer?: string; readonly size?: number } = {}) {
    this.name = name;
    this.peer = options.peer ?? "a";
    this.size = options.size ?? 100;
    this.#got = got;
  }

  turn(): void {
    this.#got.push(this.name);
  }
}

describe("turns of pulls", () => {
  it("are given first come, first served among pulls of one size; leaving twice gives one turn", () => {
    const turns = new PullTurns<Pull>({ total: 2, perPeer: 8 });
    const got: string[] = [];
    const pulls = ["0", "1", "2", "3", "4"].map((name) => new Pull(name, got));
    for (const pull of pulls) turns.join(pull);
    expect(got).toEqual(["0", "1"]);
    const [first, , third] = pulls as [Pull, Pull, Pull];
    turns.leave(third);
    turns.leave(first);
    turns.leave(first);
    expect(got).toEqual(["0", "1", "3"]);
    expect([turns.running, turns.waiting, turns.holds(first)]).toEqual([2, 1, false]);
  });

  it("go to a small pull before big ones that wait longer", () => {
    const turns = new PullTurns<Pull>({ total: 1, perPeer: 8 });
    const got: string[] = [];
    const running = new Pull("running", got, { size: 50_000 });
    turns.join(running);
    for (const name of ["big", "bigger"]) turns.join(new Pull(name, got, { size: 60_000 }));
    turns.join(new Pull("small", got, { size: 40 }));
    turns.leave(running);
    expect(got).toEqual(["running", "small"]);
  });

  it("come to a big pull too, however many small ones keep coming", () => {
    const turns = new PullTurns<Pull>({ total: 1, perPeer: 8 });
    const got: string[] = [];
    let running = new Pull("first", got, { size: 40 });
    turns.join(running);
    turns.join(new Pull("big", got, { size: 60_000 }));
    for (let count = 0; !got.includes("big"); count++) {
      const next = new Pull(`small ${count}`, got, { size: 40 });
      turns.join(next);
      turns.leave(running);
      running = next;
    }
    expect(got.length).toBe(1 + OVERTAKEN_MAX + 1);
  });

  it("are limited for each peer, and who waits for a full one holds nobody else back", () => {
    const turns = new PullTurns<Pull>({ total: 3, perPeer: 2 });
    const got: string[] = [];
    const [a1, a2, a3] = ["a1", "a2", "a3"].map((name) => new Pull(name, got)) as [Pull, Pull, Pull];
    for (const pull of [a1, a2, a3]) turns.join(pull);
    turns.join(new Pull("b1", got, { peer: "b" }));
    expect(got).toEqual(["a1", "a2", "b1"]);
    turns.leave(a1);
    expect(got.at(-1)).toBe("a3");
  });

  it("follow a peer that serves fewer, from the moment it says so", () => {
    const turns = new PullTurns<Pull>({ total: 8, perPeer: 8 });
    const got: string[] = [];
    turns.limitPeer("a", 1);
    const first = new Pull("first", got);
    turns.join(first);
    turns.join(new Pull("second", got));
    expect(got).toEqual(["first"]);
    turns.limitPeer("a", null);
    expect(got).toEqual(["first", "second"]);
  });

  it("reach everybody, never more than the limits at once, whatever comes and goes", () => {
    const step = fc.record({
      peer: fc.constantFrom("a", "b", "c"),
      size: fc.constantFrom(1, 40, 1_000, 1_001, 60_000),
      leaves: fc.nat({ max: 3 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const got: string[] = [];
        const turns = new PullTurns<Pull>({ total: 3, perPeer: 2 });
        const pulls = steps.map(({ peer, size }, index) => new Pull(String(index), got, { peer, size }));
        const leaveOne = (): void => {
          const running = pulls.filter((pull) => turns.holds(pull));
          expect(running.length).toBeLessThanOrEqual(3);
          for (const peer of ["a", "b", "c"]) {
            expect(running.filter((pull) => pull.peer === peer).length).toBeLessThanOrEqual(2);
          }
          if (running[0] !== undefined) turns.leave(running[0]);
        };
        for (const [index, { leaves }] of steps.entries()) {
          turns.join(pulls[index] as Pull);
          for (let count = 0; count < leaves; count++) leaveOne();
        }
        for (let count = 0; count < pulls.length; count++) leaveOne();
        expect([turns.running, turns.waiting]).toEqual([0, 0]);
        expect([...got].sort()).toEqual(pulls.map(({ name }) => name).sort());
      }),
    );
  });
});
