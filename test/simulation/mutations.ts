import { receiverTable } from "../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../src/transceiver/sender_table.ts";

type Cells = Record<string, Record<string, { next: string; effects: string[] }>>;

/** One change of one row of a session table, and how to take it back. */
export interface Mutation {
  readonly name: string;
  /** Of the row. */
  readonly role: "sender" | "receiver";
  readonly state: string;
  readonly event: string;
  apply(): () => void;
}

/** Every row removed, each of its effects left out, its way led elsewhere: to stay, or away if it stays. */
export function mutations(): Mutation[] {
  const all: Mutation[] = [];
  for (const [machine, table] of Object.entries({ sender: senderTable, wait: waitTable, receiver: receiverTable })) {
    // The tables are constants of the product; only this file changes them, and always takes it back.
    const cells = table as unknown as Cells;
    const states = Object.keys(cells);
    for (const [state, row] of Object.entries(cells)) {
      for (const [event, cell] of Object.entries(row)) {
        const replaced = (what: string, changed: { next: string; effects: string[] } | undefined): void => {
          all.push({
            name: `${machine} ${state} --${event}--> ${cell.next}: ${what}`,
            role: machine === "receiver" ? "receiver" : "sender",
            state,
            event,
            apply: () => {
              if (changed === undefined) delete row[event];
              else row[event] = changed;
              return () => {
                row[event] = cell;
              };
            },
          });
        };
        replaced("removed", undefined);
        for (const effect of cell.effects) {
          replaced(`without ${effect}`, { ...cell, effects: cell.effects.filter((one) => one !== effect) });
        }
        const elsewhere = cell.next === state ? (state === "END" ? states[1] : "END") : state;
        if (elsewhere !== undefined) replaced(`to ${elsewhere}`, { ...cell, next: elsewhere });
      }
    }
  }
  return all;
}
