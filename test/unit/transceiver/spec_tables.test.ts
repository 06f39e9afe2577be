import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { receiverTable } from "../../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../../src/transceiver/sender_table.ts";
import type { TransitionTable } from "../../../src/transceiver/transition.ts";
import { repositoryRoot } from "../repository/source_files.ts";

const page = "docs/spec/lease-model.md";
const lines = readFileSync(join(repositoryRoot, page), "utf8").split("\n");
const machines = {
  waiting: waitTable as TransitionTable<string, string, string>,
  sender: senderTable as TransitionTable<string, string, string>,
  receiver: receiverTable as TransitionTable<string, string, string>,
};

const cellsOf = (line: string): string[] =>
  line
    .split("|")
    .slice(1, -1)
    .map((cell) => cell.trim());
const listed = (cell: string): string[] => cell.split(",").map((name) => name.trim());
const rowOf = (state: string, event: string, next: string, effects: readonly string[]): string =>
  `${state} + ${event} -> ${next}: ${effects.join(" ") || "-"}`;

/** Each state of each event of a table of the page, as one line. */
function rowsOfPage(machine: string): string[] {
  const start = lines.findIndex((line) => cellsOf(line).join() === `${machine},event,next,effects,meaning`);
  if (start === -1) throw new Error(`${page} has no table of the machine "${machine}"`);
  const rows: string[] = [];
  for (let at = start + 2; lines[at]?.startsWith("|"); at++) {
    const cells = cellsOf(lines[at] ?? "");
    const [states = "", events = "", next = "", effects = ""] = cells;
    if (cells.length !== 5) throw new Error(`${page}:${at + 1} has ${cells.length} cells, not 5`);
    for (const state of listed(states)) {
      for (const event of listed(events)) {
        rows.push(rowOf(state, event, next === "same" ? state : next, effects === "-" ? [] : effects.split(" ")));
      }
    }
  }
  return rows;
}

const rowsOfCode = (table: TransitionTable<string, string, string>): string[] =>
  Object.entries(table).flatMap(([state, row]) =>
    Object.entries(row).flatMap(([event, cell]) =>
      cell === undefined ? [] : [rowOf(state, event, cell.next, cell.effects)],
    ),
  );

describe.each(Object.entries(machines))("the table of the %s machine in the specification", (machine, table) => {
  const written = rowsOfPage(machine);
  const coded = rowsOfCode(table);

  it("has every row of the code, with its next state and its effects in order", () => {
    expect(coded.filter((row) => !written.includes(row))).toEqual([]);
  });

  it("has no row that the code has not", () => {
    expect(written.filter((row) => !coded.includes(row))).toEqual([]);
  });

  it("has no pair of state and event twice", () => {
    const pairs = written.map((row) => row.split(" -> ")[0]);
    expect(pairs.filter((pair, index) => pairs.indexOf(pair) !== index)).toEqual([]);
  });
});
