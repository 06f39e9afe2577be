import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { repositoryRoot } from "../repository/source_files.ts";

const read = (file: string): string => readFileSync(join(repositoryRoot, file), "utf8");
const page = read("docs/spec/lease-model.md").split("\n");
const code = read("native/paths/slot_table.cc");
const receiverAt = code.indexOf("ReceiverSlots()");

/** `{S::kSent, E::kStalled, S::kSent, {F::kTellStall}}` as the page writes it. */
const rowsOfCode = (part: string): string[] =>
  [...part.matchAll(/\{S::k(\w+), E::k(\w+), S::k(\w+)(?:, \{([^}]*)\})?\}/g)].map(
    ([, state, event, next, effects = ""]) =>
      `${state} + ${event} -> ${next}: ${[...effects.matchAll(/F::k(\w+)/g)].map(([, name]) => name).join(" ") || "-"}`,
  );

function rowsOfPage(machine: string): string[] {
  const start = page.findIndex((line) => line.startsWith(`| ${machine} | event |`));
  const end = page.findIndex((line, at) => at > start && !line.startsWith("|"));
  return page.slice(start + 2, end).map((line) => {
    const [, state, event, next, effects] = line.split("|").map((cell) => cell.trim());
    return `${state} + ${event} -> ${next}: ${effects}`;
  });
}

describe.each([
  ["sender slot", code.slice(0, receiverAt)],
  ["receiver slot", code.slice(receiverAt)],
])("the table of the %s in the specification", (machine, part) => {
  it("has the rows of the code and no others", () => {
    const rows = rowsOfCode(part);
    expect(rows.length).toBeGreaterThan(7);
    expect(rowsOfPage(machine)).toEqual(rows);
  });
});
