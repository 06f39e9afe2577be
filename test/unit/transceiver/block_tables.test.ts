import { describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { Layout } from "../../../src/layout.ts";
import { KvBlockTables } from "../../../src/transceiver/block_tables.ts";
import { decodeState, encodeState, joinStates, joinTables, tablesOf } from "../../../src/transceiver/opaque_state.ts";

const layout = Layout.parse({
  layers: 2,
  kvHeads: 2,
  headDim: 8,
  dtype: "f16",
  groups: [
    { name: "full", kind: "kv", layers: [0] },
    { name: "local", kind: "kv", layers: [1], window: 64 },
  ],
});

const stateOf = (rank: number, table: string): string =>
  encodeState({
    instance: "one",
    layout: { ...layout, groups: layout.groups?.filter(({ name }) => name === table) },
    tpSize: 2,
    ppSize: 1,
    requestId: requestId(7),
    tokens: 40,
    ranks: [
      { rank, epoch: `${rank}`.repeat(16) as never, tcp: "tcp://h:1", unix: null, token: "00".repeat(16) as never },
    ],
  });

describe("states of several block tables", () => {
  it("are one, and those of several ranks are joined table by table", () => {
    const [first, second] = [0, 1].map((rank) => joinTables([stateOf(rank, "full"), stateOf(rank, "local")]));
    const tables = tablesOf(joinStates([first as string, second as string])).map(decodeState);
    expect(tables.map((state) => state.layout.groups?.map(({ name }) => name))).toEqual([["full"], ["local"]]);
    for (const { ranks } of tables) expect(ranks.map(({ rank }) => rank)).toEqual([0, 1]);
  });

  it("are not joined when the ranks have unequal numbers of them", () => {
    const both = joinTables([stateOf(0, "full"), stateOf(0, "local")]);
    expect(() => joinStates([both, stateOf(1, "full")])).toThrow(/unequal numbers of block tables/);
    expect(() => joinStates([])).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
  });
});

describe("tables that don't divide a layout", () => {
  it.each([
    [{}, /group full is in 0 tables/],
    [{ all: ["full"] }, /group local is in 0 tables/],
    [{ all: ["full", "local"], near: ["local"] }, /group local is in 2 tables/],
    [{ all: ["full", "local", "scales"] }, /options\.tables\.all .*no group scales/],
  ])("%j are refused before anything is opened", async (tables, words) => {
    const pool = { adopt: [], blocks: 4, placement: {} };
    await expect(KvBlockTables.open({ layout, pool, tables })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringMatching(words),
    });
  });
});
