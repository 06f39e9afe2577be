import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { KvAttentionDp } from "../../../src/transceiver/attention_dp.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";
import { decodeState } from "../../../src/transceiver/opaque_state.ts";
import { findWrongKv, writeKv } from "./made_up_kv.mjs";

const TOKENS = 40;
const pool = { memory: "host", blocks: 16 } as const;
const gqa = { layers: 4, kvHeads: 4, headDim: 8, dtype: "f16", tokensPerBlock: 8, attention: "gqa" } as const;
const mla = { ...gqa, kvHeads: 1, headDim: 40, attention: "mla" } as const;

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-dp-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

async function move(from: KvInstance, to: KvInstance, number: number): Promise<void> {
  using source = from.pool.allocate(5);
  using target = to.pool.allocate(5);
  writeKv(from, number, source.ids, 0, TOKENS);
  const sending = from.send({ requestId: requestId(number), tokens: TOKENS, blocks: source });
  await Promise.all([to.receive({ state: sending.state, blocks: target }).done, sending.done]);
  expect(findWrongKv(to, number, target.ids, 0, TOKENS)).toBeNull();
}

it("a request's KV lies in one group, whose ranks its state names, and moves to and from instances of any shape", async () => {
  const common = { layout: gqa, pool, socketDir };
  await using dp = await KvAttentionDp.open({ ...common, tpSize: 4, ppSize: 2, dpSize: 2 });
  await using plain = await KvInstance.open({ ...common, tpSize: 3, ppSize: 1 });
  await using other = await KvAttentionDp.open({ ...common, tpSize: 4, ppSize: 1, dpSize: 4 });
  let number = 0;
  for (const group of dp.groups) {
    using blocks = group.pool.allocate(5);
    const sending = group.send({ requestId: requestId(++number), tokens: TOKENS, blocks });
    const { tpSize, ppSize, ranks } = decodeState(sending.state);
    expect([tpSize, ppSize, ranks.map(({ epoch }) => epoch)]).toEqual([2, 2, group.ranks.map(({ epoch }) => epoch)]);
    sending.cancel();
    await sending.done.catch(() => {});
    for (const peer of [plain, ...other.groups]) {
      await move(group, peer, ++number);
      await move(peer, group, ++number);
    }
  }
});

it("groups that read one latent kept by every rank take it from different ranks", async () => {
  await using context = await KvInstance.open({ layout: mla, pool, socketDir, tpSize: 4, ppSize: 1 });
  await using dp = await KvAttentionDp.open({ layout: mla, pool, socketDir, tpSize: 4, ppSize: 1, dpSize: 4 });
  const served = () => context.ranks.map((rank) => rank.stats().sends.completed);
  for (const [dpRank, group] of dp.groups.entries()) {
    const read = context.ranks.map(({ epoch }) => epoch);
    await move(context, group, dpRank + 1);
    // Every rank's offer ends, one by a pull of all, the others by a word.
    expect(served()).toEqual([1, 1, 1, 1].map((each) => each * (dpRank + 1)));
    const rates = group.ranks[0].stats().peers;
    expect(rates.find(({ gbPerS }) => (gbPerS ?? 0) > 0)?.epoch).toBe(read[dpRank]);
  }
});

it("a new request goes to the group with the most free blocks, of equals to the one chosen longest ago", async () => {
  await using dp = await KvAttentionDp.open({ layout: mla, pool, socketDir, tpSize: 3, ppSize: 1, dpSize: 3 });
  expect([dp.choose(), dp.choose(), dp.choose(), dp.choose()]).toEqual([0, 1, 2, 0]);
  using held = dp.groups[1]?.pool.allocate(3);
  expect([dp.choose(), dp.choose(), dp.choose()]).toEqual([2, 0, 2]);
  held?.release();
  expect(dp.choose()).toBe(1);
  expect(dp.health()).toEqual({ status: "ok", reasons: [] });
});

it("groups that the ranks can't be divided into are refused", async () => {
  const opening = KvAttentionDp.open({ layout: mla, pool, socketDir, tpSize: 4, ppSize: 1, dpSize: 3 });
  await expect(opening).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: expect.stringMatching(/dpSize 3/) });
});
