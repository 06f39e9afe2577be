import { describe, expect, it } from "vitest";
import { mergeResults, missingHits, renderTable, withTable } from "../../../scripts/fault_tables.mjs";

const cells = ["kill, context, moving", "cut, generation, offered"];
const one = { cells, rows: [{ cell: "cut, generation, offered", recoveredMs: [30, 10], again: 1 }] };
const two = {
  cells,
  rows: [
    { cell: "kill, context, moving", recoveredMs: [5], again: 0 },
    { cell: "cut, generation, offered", recoveredMs: [20], again: 0 },
  ],
};

describe("the tables of the fault matrix", () => {
  it("add up what several runs found, in the order of the cells", () => {
    expect(mergeResults([one, two]).rows).toEqual([
      { cell: "kill, context, moving", recoveredMs: [5], again: 0 },
      { cell: "cut, generation, offered", recoveredMs: [30, 10, 20], again: 1 },
    ]);
  });

  it("name the cells that were hit too rarely, those that never were too", () => {
    expect(missingHits(one, 2)).toEqual(["kill, context, moving: 0 of 2 hits"]);
    expect(missingHits(mergeResults([one, two]), 2)).toEqual(["kill, context, moving: 1 of 2 hits"]);
  });

  it("are written between the marks of their level, again and again", () => {
    const page = "a\n<!-- worker level: from here on -->\nold\n<!-- worker level: to here -->\nb";
    const table = renderTable(mergeResults([one, two]));
    expect(table.split("\n")[3]).toBe("| cut | generation | offered | 3 | 20 | 30 | 30 | 1 |");
    const written = withTable(page, "worker", table);
    expect(written).toBe(`a\n<!-- worker level: from here on -->\n\n${table}\n<!-- worker level: to here -->\nb`);
    expect(withTable(written, "worker", table)).toBe(written);
    expect(() => withTable(page, "transceiver", table)).toThrow(/no place/);
  });
});
