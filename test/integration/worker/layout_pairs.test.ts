import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { tokenizerOf, writeRandomLlama } from "../engine/gguf_writer.ts";
import { until } from "../waits.ts";
import { ask, askPair, type Body, type Reply } from "./client.ts";
import { goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { blocksOf, holdsNothing, transfersOf } from "./inspect.ts";
import { type Overrides, tinyModel, type WorkerProcess, Workers } from "./worker_process.ts";

/** tp, pp (or the layers of each stage) and tokens per block of a worker. */
type Shape = readonly [tp: number, pp: number | readonly number[], tokensPerBlock: number];

/** The first is not spread at all: what it answers alone is what every pair must answer. */
const shapesOf = {
  /** Two KV heads and five layers: up to four ranks keep the same head, of three one has one for itself; stages are uneven. */
  tiny: [
    [1, 1, 32],
    [2, 1, 32],
    [4, 1, 16],
    [8, 1, 64],
    [1, 2, 32],
    [1, 5, 16],
    [2, [1, 3, 1], 64],
    [3, 1, 32],
    [4, 2, 32],
  ],
  /** Twenty-four KV heads and five layers. */
  random: [
    [1, 1, 32],
    [2, 1, 32],
    [3, 1, 32],
    [4, 1, 16],
    [8, 1, 32],
    [3, [4, 1], 64],
    [5, 1, 32],
    [8, 3, 32],
  ],
} as const satisfies Record<string, readonly Shape[]>;

let folder: string;
let randomModel: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvt-layouts-"));
  randomModel = join(folder, "random.gguf");
  const tiny = await ReferenceEngine.load(tinyModel);
  const shape = { layers: 5, heads: 24, kvHeads: 24, headDim: 16, feedForward: 64, vocab: 768, context: 1024 };
  writeRandomLlama(randomModel, { seed: 24, ...shape }, tokenizerOf(tiny.metadata));
  await tiny.close();
});
afterAll(() => rmSync(folder, { recursive: true }));

function overrides(model: string, [tp, pp, tokensPerBlock]: Shape, enableBlockReuse: boolean): Overrides {
  const { kvCache } = defaultWorkerSettings(model);
  return {
    model,
    servedModelName: "m",
    logLevel: "warn",
    tensorParallelSize: tp,
    pipelineParallelSize: typeof pp === "number" ? pp : pp.length,
    ppPartition: typeof pp === "number" ? null : pp,
    kvCache: { ...kvCache, enableBlockReuse, tokensPerBlock, maxTokens: 8192 },
  };
}

const startAll = (workers: Workers, model: string, shapes: readonly Shape[], reuse: boolean) =>
  Promise.all(shapes.map((shape) => workers.start(overrides(model, shape, reuse))));

function* pairsOf(all: readonly WorkerProcess[], shapes: readonly Shape[]) {
  let number = 0;
  for (const [from, context] of all.entries()) {
    for (const [to, generation] of all.entries()) {
      yield { context, generation, number: number++, name: `${shapes[from]} to ${shapes[to]}` };
    }
  }
}

/** The last word of a transfer may still be on its way; none of them failed. */
async function expectNothingHeld(all: readonly WorkerProcess[]): Promise<void> {
  for (const worker of all) {
    await until("nothing is held", () => holdsNothing(worker));
    const { sends, receives, pinned, quarantined } = await blocksOf(worker);
    expect([sends.failed, receives.failed, pinned, quarantined]).toEqual([0, 0, 0, 0]);
  }
}

describe("workers of one model, its KV spread over any number of ranks, as pairs of processes", () => {
  it.each(["without", "with"] as const)("answer the goldens token for token, %s prefix reuse", async (reuse) => {
    await using workers = new Workers();
    const all = await startAll(workers, tinyModel, shapesOf.tiny, reuse === "with");
    const short = goldens.filter(({ ids }) => ids.length < 400);
    for (const { context, generation, number, name } of pairsOf(all, shapesOf.tiny)) {
      const golden = short[number % short.length] as (typeof short)[number];
      const pair = { context, generation };
      expectGolden(await askPair(pair, golden.kind, golden.body), { ...golden, name: `${golden.name}, ${name}` });
      const streamed = await askPair(pair, golden.kind, { ...golden.body, stream: true });
      expect(streamed.text, name).toBe(golden.outputText);
    }
    if (reuse === "without") await expectNothingHeld(all);
  });

  it("answer from random weights, whose tokens flip at the change of a bit, as one unspread worker does", async () => {
    await using workers = new Workers();
    const all = await startAll(workers, randomModel, shapesOf.random, false);
    const [unspread] = all as [WorkerProcess, ...WorkerProcess[]];
    const prompts = ["Once upon a time", `${"The key is 4711. ".repeat(12)}What is it?`];
    const bodies: Body[] = prompts.map((prompt) => ({
      prompt,
      temperature: 0,
      max_tokens: 12,
      logprobs: 5,
      ignore_eos: true,
    }));
    const wanted: Reply[] = [];
    for (const body of bodies) wanted.push(await ask(unspread.url, "completion", body));
    expect(wanted[1]?.promptTokens).toBeGreaterThan(64);
    for (const { context, generation, number, name } of pairsOf(all, shapesOf.random)) {
      const at = number % 2;
      const reply = await askPair({ context, generation }, "completion", bodies[at] as Body);
      // Equal log probabilities are equal logits: they are printed with every digit.
      expect(reply, name).toEqual(wanted[at]);
    }
    await expectNothingHeld(all);
  });

  it("fetch only what is not here: a conversation's second turn moves a fraction, into blocks of another size", async () => {
    await using workers = new Workers();
    const [context, generation] = (await startAll(
      workers,
      tinyModel,
      [
        [4, 2, 16],
        [2, 3, 64],
      ],
      true,
    )) as [WorkerProcess, WorkerProcess];
    const golden = goldens.find(({ name }) => name === "key-1500");
    if (golden === undefined) throw new Error("no such golden");
    for (const id of ["first", "second"]) {
      expectGolden(await askPair({ context, generation }, golden.kind, golden.body, { id }), golden);
    }
    const [first, second] = [await transfersOf(generation, "first"), await transfersOf(generation, "second")];
    expect(first[0]?.bytes).toBe(golden.ids.length * 5 * 2 * 2 * 32 * 4);
    expect(first[0]?.bytes).toBeGreaterThan(20 * (second[0]?.bytes ?? Number.POSITIVE_INFINITY));
  });
});
