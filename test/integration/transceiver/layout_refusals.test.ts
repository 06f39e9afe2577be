import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { Layout, type LayoutGroup } from "../../../src/layout.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-refusals-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

const TOKENS = 30;
const plain = { layers: 6, kvHeads: 4, headDim: 8, dtype: "fp8_e5m2", tokensPerBlock: 8 };
const pool = { memory: "host", blocks: 16 } as const;

const open = (layout: object, [tpSize, ppSize]: readonly [number, number] = [1, 1]): Promise<KvInstance> =>
  KvInstance.open({ layout: Layout.parse({ ...plain, ...layout }), tpSize, ppSize, pool, socketDir });

const blocksOf = (kv: KvInstance, tokens = TOKENS) => kv.pool.allocate(Math.ceil(tokens / kv.layout.tokensPerBlock));

/** With the state of an offer, and of a peer, of whom only its number of ranks is known before it is reached. */
async function expectRefused(
  context: KvInstance,
  generation: KvInstance,
  words: string,
  beforeReached = words,
): Promise<void> {
  using source = blocksOf(context);
  using target = blocksOf(generation);
  const sending = context.send({ requestId: requestId(1), tokens: TOKENS, blocks: source });
  const refusal = (message: string) =>
    expect.objectContaining({ code: "LAYOUT_MISMATCH", message: expect.stringContaining(message) });
  expect(() => generation.receive({ state: sending.state, blocks: target })).toThrow(refusal(words));
  const peer = { instance: context.instance, endpoints: context.infoEndpoints };
  const receive = async () =>
    generation.receive({ peer, requestId: requestId(2), tokens: TOKENS, blocks: target }).done;
  await expect(receive()).rejects.toEqual(refusal(beforeReached));
  sending.cancel();
  await sending.done.catch(() => {});
}

const kv: LayoutGroup = { name: "kv", kind: "kv" };
const mla = { attention: "mla", kvHeads: 1 } as const;

describe("a pair that KV can't move between is refused with every field that differs", () => {
  it.each([
    [
      {},
      { layers: 4, kvHeads: 2, headDim: 16 },
      "layers here 4, there 6; kvHeads here 2, there 4; headDim here 16, there 8",
    ],
    [{}, { dtype: "bf16" }, "dtype here bf16, there fp8_e5m2"],
    [{}, mla, "kvHeads here 1, there 4; attention here mla, there mha or gqa"],
    [{ groups: [kv] }, { groups: [{ ...kv, window: 64 }] }, "groups.kv.window here 64, there none"],
    [
      { groups: [kv, { name: "scales", kind: "scales", bytesPerToken: 32 }] },
      { groups: [kv, { name: "scales", kind: "scales", bytesPerBlock: 64 }] },
      "groups.scales.bytesPerBlock here 64, there none; groups.scales.bytesPerToken here none, there 32",
    ],
    [
      { groups: [kv, { name: "extra", kind: "scales", bytesPerToken: 32 }] },
      { groups: [kv, { name: "extra", kind: "latent", bytesPerToken: 32, layers: [1, 2, 4] }] },
      "groups.extra.kind here latent, there scales; groups.extra.layers here 1-2,4, there 0-5; " +
        "groups.extra.headAxis here false, there true; groups.extra.planes here 1, there 2",
    ],
    [
      { groups: [kv, { name: "state", kind: "opaque", bytesPerToken: 5 }] },
      {},
      "groups.state.kind here none, there opaque",
    ],
  ])("%j to %j", async (here, there, words) => {
    await using context = await open(here);
    await using generation = await open(there);
    await expectRefused(context, generation, words);
  });

  it("opaque bytes bind ranks and blocks too", async () => {
    const groups = [kv, { name: "state", kind: "opaque", bytesPerToken: 5 }];
    await using context = await open({ groups }, [2, 2]);
    await using generation = await open({ groups, tokensPerBlock: 16 }, [1, 2]);
    await using more = await open({ groups }, [3, 2]);
    const sizes = "tpSize here 1, there 2";
    await expectRefused(context, generation, `tokensPerBlock here 16, there 8; ${sizes}`, sizes);
    await expectRefused(context, more, "tpSize here 3, there 2");
  });
});

it("a hold that lacks blocks which a window reaches is refused", async () => {
  const groups: LayoutGroup[] = [
    { name: "near", kind: "kv", layers: [0, 2, 4], window: 7 },
    { name: "far", kind: "kv", layers: [1, 3, 5], window: 20 },
  ];
  await using one = await open({ groups });
  using blocks = blocksOf(one, 64);
  using short = blocks.share(6);
  // Tokens 44 to 63 are live: three blocks.
  expect(() => one.send({ requestId: requestId(1), tokens: 64, blocks: short })).toThrow(/2 blocks.*need 3/);
});
