import { describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { KvInstance } from "../../../src/transceiver/instance.ts";
import { until } from "../waits.ts";
import { allocateFor, LAYERS, openShape, type Shape, socketDirOf } from "./instance_shapes.ts";
import { findWrongKv, writeKv } from "./made_up_kv.mjs";

const TOKENS = 60;
const socketDir = socketDirOf("layers");
const open = (shape: Shape): Promise<KvInstance> => openShape(shape, { socketDir, verify: "full" });
const blocksOf = (instance: KvInstance) => allocateFor(instance, TOKENS);

const pairs: readonly (readonly [Shape, Shape])[] = [
  [
    [1, 1, 32],
    [1, 1, 32],
  ],
  [
    [2, 1, 32],
    [1, 2, 16],
  ],
  [
    [1, 3, 16],
    [4, 1, 32],
  ],
  [
    [2, 2, 8],
    [2, 3, 16],
  ],
];

describe.each(pairs)("a prefill that tells of each layer, from %j to %j", (from, to) => {
  it("hands over what is written while later layers are not, and every byte in the end", async () => {
    await using context = await open(from);
    await using generation = await open(to);
    using source = blocksOf(context);
    using target = blocksOf(generation);
    const wrong = (tokens: number, first: number, last: number): string | null =>
      findWrongKv(generation, 3, target.ids, 0, tokens, { from: first, to: last });
    const peer = { instance: context.instance, endpoints: context.infoEndpoints };
    const receiving = generation.receive({ peer, requestId: requestId(3), tokens: TOKENS, blocks: target });
    await context.awaitPull(requestId(3));
    const sending = context.send({ requestId: requestId(3), tokens: TOKENS, blocks: source, ready: 0 });
    let before = 0;
    for (const chunk of [21, 48, TOKENS]) {
      for (let layer = 1; layer <= LAYERS; layer++) {
        writeKv(context, 3, source.ids, before, chunk, { from: layer - 1, to: layer });
        // Without a wait now and then, so that several layers come together.
        sending.ready(chunk, { layers: layer });
        if (chunk === 48 && layer % 2 === 0) continue;
        await until(`layer ${layer} of ${chunk} tokens is here`, () => wrong(chunk, 0, layer) === null);
        if (layer < LAYERS) expect(wrong(chunk, layer, LAYERS)).not.toBeNull();
      }
      before = chunk;
    }
    const first = { firstTokens: [7] };
    sending.finish(first);
    const report = await receiving.done;
    expect(report).toMatchObject({ first, tokens: TOKENS });
    expect((await sending.done).bytes).toBe(report.bytes);
    expect(wrong(TOKENS, 0, LAYERS)).toBeNull();
    // As many as without layers: nothing is moved twice.
    const whole = context.send({ requestId: requestId(4), tokens: TOKENS, blocks: source });
    using again = blocksOf(generation);
    expect((await generation.receive({ state: whole.state, blocks: again }).done).bytes).toBe(report.bytes);
    await whole.done;
    expect(report.chunks).toBeGreaterThan(3);
  });
});

it("layers that are none of the model's are refused", async () => {
  await using context = await open([1, 1, 32]);
  using source = blocksOf(context);
  const sending = context.send({ requestId: requestId(5), tokens: TOKENS, blocks: source, ready: 0 });
  for (const layers of [0, -1, 1.5, LAYERS + 1]) {
    expect(() => sending.ready(TOKENS, { layers })).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
  }
  sending.cancel();
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
});
