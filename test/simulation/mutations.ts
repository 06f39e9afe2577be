import { receiverTable } from "../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../src/transceiver/sender_table.ts";

type Cells = Record<string, Record<string, { next: string; effects: string[] }>>;

/** One change of one cell of a session table, and how to take it back. */
export interface Mutation {
  readonly name: string;
  apply(): () => void;
}

/** Every cell removed, every effect of every cell left out, every cell that leads elsewhere made to stay. */
export function mutations(): Mutation[] {
  const all: Mutation[] = [];
  for (const [machine, table] of Object.entries({ sender: senderTable, wait: waitTable, receiver: receiverTable })) {
    // The tables are constants of the product; only this file changes them, and always takes it back.
    const cells = table as unknown as Cells;
    for (const [state, row] of Object.entries(cells)) {
      for (const [event, cell] of Object.entries(row)) {
        const replaced = (what: string, changed: { next: string; effects: string[] } | undefined): void => {
          all.push({
            name: `${machine} ${state} --${event}--> ${cell.next}: ${what}`,
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
        if (cell.next !== state) replaced(`stays in ${state}`, { ...cell, next: state });
      }
    }
  }
  return all;
}
