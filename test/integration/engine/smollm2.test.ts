import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { smolLm2 } from "../../../scripts/smollm2.mjs";
import { ChatTemplate, Tokenizer } from "../../../src/worker/text/index.ts";
import { OpenedEngine, tokensOf } from "./opened_engine.ts";

const model = smolLm2();
if (!("file" in model)) console.warn(`SmolLM2 is not tested here: ${model.missing}`);

describe.skipIf(!("file" in model))("SmolLM2-135M-Instruct, Q4_1", { timeout: 300_000 }, () => {
  let opened: OpenedEngine;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    opened = await OpenedEngine.open("file" in model ? model.file : "", { threads: 2, blocks: 16 });
    tokenizer = Tokenizer.fromMetadata(opened.engine.metadata);
  }, 300_000);
  afterAll(() => opened?.[Symbol.asyncDispose]());

  test("is read as the model that it is, in bf16", () => {
    expect(opened.engine.geometry).toMatchObject({
      layers: 30,
      kvHeads: 3,
      headDim: 64,
      dtype: "bf16",
      vocab: 49_152,
      maxSeqLen: 8_192,
      blockBytes: 737_280,
    });
    expect(opened.engine.weightsDtype).toBe("bf16");
    expect(opened.engine.parameters).toBe(134_515_008);
    expect(tokenizer.vocabSize).toBe(49_152);
  });

  test("names the capital of France, alike in one chunk and in many", async () => {
    const template = ChatTemplate.fromMetadata(opened.engine.metadata, tokenizer);
    const rendered = template?.render([{ role: "user", content: "What is the capital of France?" }], {
      addGenerationPrompt: true,
      specialsInContent: false,
    });
    const { text = "", ...guard } = rendered ?? {};
    const prompt = tokenizer.encode(text, { specials: true, ...guard });
    const answer = await opened.generate(prompt, 8, { sampling: { logprobs: 3 } });
    expect(tokenizer.decode(tokensOf(answer))).toContain("Paris");
    expect(await opened.generate(prompt, 8, { chunk: 5, sampling: { logprobs: 3 } })).toEqual(answer);
  });
});
