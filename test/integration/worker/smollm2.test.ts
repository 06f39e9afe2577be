import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { smolLm2 } from "../../../scripts/smollm2.mjs";
import { ask, askPair, type Body, type Pair } from "./client.ts";
import { transfersOf } from "./inspect.ts";
import { Workers, withPool } from "./worker_process.ts";

const model = smolLm2();
if (!("file" in model)) console.warn(`SmolLM2 is not tested between workers: ${model.missing}`);

const QUESTION: Body = {
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  max_tokens: 8,
  logprobs: true,
  top_logprobs: 2,
};

describe.skipIf(!("file" in model))("SmolLM2 in worker processes", { timeout: 300_000 }, () => {
  const workers = new Workers();
  let pair: Pair;
  beforeAll(async () => {
    const options = { ...withPool(512), model: "file" in model ? model.file : "" };
    pair = { context: await workers.start(options), generation: await workers.start(options) };
  }, 300_000);
  afterAll(() => workers[Symbol.asyncDispose]());

  it("gives one answer and the same log probabilities, from one worker and from two", async () => {
    const aggregated = await ask(pair.context.url, "chat", QUESTION);
    expect(aggregated.text).toContain("Paris");
    const disaggregated = await askPair(pair, "chat", QUESTION, { id: "moved" });
    expect(disaggregated).toEqual({ ...aggregated, cachedTokens: disaggregated.cachedTokens });
    expect(await transfersOf(pair.generation, "moved")).toHaveLength(1);
  });
});
