import { describe, expect, it } from "vitest";
import {
  receiverEvents,
  receiverStates,
  receiverTable,
  renewingStates,
} from "../../../src/transceiver/receiver_table.ts";
import {
  leasedStates,
  senderEvents,
  senderStates,
  senderTable,
  waitEvents,
  waitStates,
  waitTable,
} from "../../../src/transceiver/sender_table.ts";
import { cellOf, type TransitionTable } from "../../../src/transceiver/transition.ts";

type Table = TransitionTable<string, string, string>;
const machines = [
  { name: "sender", table: senderTable as Table, states: senderStates, events: senderEvents, first: "NONE" },
  { name: "waiting pull", table: waitTable as Table, states: waitStates, events: waitEvents, first: "NONE" },
  { name: "receiver", table: receiverTable as Table, states: receiverStates, events: receiverEvents, first: "QUEUED" },
] as const;

function* pairs(machine: (typeof machines)[number]) {
  for (const state of machine.states) for (const event of machine.events) yield { state, event };
}

describe.each(machines)("the $name's table", (machine) => {
  const cells = [...pairs(machine)].map(({ state, event }) => ({ state, event, cell: machine.table[state]?.[event] }));

  it("answers every possible pair of state and event, and asserts the impossible ones", () => {
    for (const { state, event, cell } of cells) {
      const look = () => cellOf(machine.name, machine.table, state, event);
      if (cell === undefined) expect(look).toThrow(/internal defect in (sender|waiting pull|receiver) session/);
      else expect(look()).toBe(cell);
    }
  });

  it("uses every state and every event", () => {
    const reached = new Set<string>([machine.first]);
    const growing = () => cells.filter(({ state, cell }) => cell !== undefined && reached.has(state));
    for (let before = -1; before < reached.size; ) {
      before = reached.size;
      for (const { cell } of growing()) reached.add(cell?.next ?? "");
    }
    expect([...reached].sort()).toEqual([...machine.states].sort());
    for (const event of machine.events) expect(cells.some((cell) => cell.event === event && cell.cell)).toBe(true);
  });

  it("never leaves END", () => {
    for (const { state, cell } of cells) if (state === "END" && cell !== undefined) expect(cell.next).toBe("END");
  });

  it("can reach END from everywhere", () => {
    const ending = new Set(["END"]);
    for (let before = -1; before < ending.size; ) {
      before = ending.size;
      for (const { state, cell } of cells) if (cell !== undefined && ending.has(cell.next)) ending.add(state);
    }
    expect(ending.size).toBe(machine.states.length);
  });
});

const effectsOf = (table: Table, from: string, event: string): readonly string[] => table[from]?.[event]?.effects ?? [];

describe("what the tables promise", () => {
  const settles = (effects: readonly string[]): boolean => effects.some((effect) => effect.startsWith("settle"));

  it("the sender settles exactly when it goes to END, so blocks are released once and never before (I5)", () => {
    for (const state of senderStates) {
      for (const event of senderEvents) {
        const cell = (senderTable as Table)[state]?.[event];
        if (cell === undefined) continue;
        expect(settles(cell.effects), `${event} in ${state}`).toBe(cell.next === "END" && state !== "END");
      }
    }
  });

  it("the receiver tells its outcome exactly when it goes to DRAIN, and gives blocks back only when quiet (I3)", () => {
    for (const state of receiverStates) {
      for (const event of receiverEvents) {
        const cell = (receiverTable as Table)[state]?.[event];
        if (cell === undefined) continue;
        const tells = cell.effects.includes("complete") || cell.effects.includes("fail");
        expect(tells, `${event} in ${state}`).toBe(cell.next === "DRAIN" && state !== "DRAIN");
        expect(cell.effects.includes("release"), `${event} in ${state}`).toBe(event === "quiet");
      }
    }
  });

  it("only DONE, the lease's end, and the same receiver epoch's word end a leased session (I2)", () => {
    const enders = new Set<string>();
    for (const state of leasedStates) {
      for (const event of senderEvents) {
        const cell = (senderTable as Table)[state]?.[event];
        if (cell?.next === "END" || cell?.next === "OFFER") enders.add(event);
      }
    }
    expect([...enders].sort()).toEqual(["done", "helloWithout", "leaseOver", "pullHigher"]);
  });

  it("a waiting pull ends its wait exactly when it goes to END, and a refusal is the answer to who is not served", () => {
    for (const event of waitEvents) {
      const cell = (waitTable as Table).WAIT?.[event];
      if (cell === undefined) continue;
      expect(cell.effects.includes("endWait"), event).toBe(cell.next === "END");
      const refuses = cell.effects.some((effect) => effect.startsWith("refuse"));
      expect(refuses, event).toBe(["pullLayout", "cancel", "drain", "queueTimer"].includes(event));
    }
  });

  it("FINISHED follows every GRANT of the sender, so that no attempt misses it", () => {
    for (const state of senderStates) {
      for (const event of senderEvents) {
        const effects = effectsOf(senderTable as Table, state, event);
        if (!effects.includes("writeGrant")) continue;
        expect(effects.indexOf("writeFinished"), `${event} in ${state}`).toBe(effects.indexOf("writeGrant") + 1);
      }
    }
  });

  it("an ending sender renews nothing", () => {
    for (const state of senderStates) {
      const renews = effectsOf(senderTable as Table, state, "renew").includes("extendLease");
      expect(renews).toBe(state === "GRANT");
      expect(effectsOf(senderTable as Table, state, "renewed").includes("confirmHeld")).toBe(state === "GRANT");
    }
  });

  it("every way out of READ without the data tells the sender, unless the sender is gone", () => {
    for (const event of receiverEvents) {
      const cell = (receiverTable as Table).READ?.[event];
      if (cell?.next !== "DRAIN") continue;
      expect(cell.effects.includes("writeDone"), event).toBe(event !== "staleEpoch" && event !== "senderDeadLate");
    }
  });

  it("only states that may hold a lease renew one", () => {
    expect([...renewingStates].sort()).toEqual(["FINISH", "PULL", "READ", "VERIFY"]);
  });
});
