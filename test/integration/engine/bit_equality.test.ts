import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { BlockId } from "../../../src/ids.ts";
import { type RandomLlama, uniform, writeRandomLlama } from "./gguf_writer.ts";
import { OpenedEngine, sampling, tokensOf } from "./opened_engine.ts";

/**
 * Each output element is reduced in one order that depends on nothing but its own position (reference-engine.md section 3): so the bits
 * of logits and of KV blocks are the same however the work was cut. Random weights have flat logits: any change of a bit shows.
 */
const models: Record<string, RandomLlama & { readonly kv?: "f32" | "bf16"; readonly weights?: "f32" | "bf16" }> = {
  "F32, one KV head for two heads": { seed: 1 },
  "bf16 KV and weights": { seed: 2, kv: "bf16", weights: "bf16" },
  "one KV head for all, separate output": { seed: 3, heads: 6, kvHeads: 1, headDim: 16, tied: false },
  "as many KV heads as heads, wide heads": { seed: 4, heads: 2, kvHeads: 2, headDim: 80, feedForward: 160 },
  "ratio 3, odd vocabulary, bf16 KV": { seed: 5, heads: 9, kvHeads: 3, headDim: 64, vocab: 277, kv: "bf16" },
  F16: { seed: 6, type: "F16" },
  BF16: { seed: 7, type: "BF16", weights: "bf16" },
  Q8_0: { seed: 8, type: "Q8_0" },
  Q4_0: { seed: 9, type: "Q4_0" },
  "Q4_1, bf16 weights": { seed: 10, type: "Q4_1", weights: "bf16" },
  "Q6_K, separate output": { seed: 11, type: "Q6_K", headDim: 64, tied: false },
};

const PROMPT = 150;
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvt-engine-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const bits = (values: Float32Array): string => Buffer.from(values.buffer).toString("base64");

const digest = (on: OpenedEngine, table: readonly BlockId[]): string => {
  const hash = createHash("sha256");
  for (const id of table) hash.update(on.block(id));
  return hash.digest("hex");
};

describe.each(Object.entries(models))("%s", (name, model) => {
  const file = () => join(folder, `${model.seed}.gguf`);
  const { kv = "f32", weights = "f32" } = model;
  const random = uniform(model.seed + 1_000);
  const vocab = model.vocab ?? 300;
  const prompt = Array.from({ length: PROMPT }, () => Math.floor(random() * vocab));
  let opened: OpenedEngine;
  let whole: string;
  let wholeBlocks: string;

  beforeAll(async () => {
    writeRandomLlama(file(), model);
    opened = await OpenedEngine.open(file(), { kv, weights });
    whole = bits(await logits(opened, PROMPT, opened.table(PROMPT)));
    wholeBlocks = digest(opened, opened.table(PROMPT));
  });
  afterAll(() => opened[Symbol.asyncDispose]());

  /** Logits after the prompt, prefilled in chunks. */
  async function logits(on: OpenedEngine, chunk: number, blockTable: readonly BlockId[]): Promise<Float32Array> {
    let last: Float32Array = new Float32Array();
    for (let start = 0; start < prompt.length; start += chunk) {
      const tokens = Uint32Array.from(prompt.slice(start, start + chunk));
      last = await on.engine.logits({ tokens, startPos: start, blockTable });
    }
    return last;
  }

  test("logits are finite and not all alike", async () => {
    const values = await logits(opened, PROMPT, opened.table(PROMPT));
    expect(values).toHaveLength(vocab);
    expect(values.every(Number.isFinite)).toBe(true);
    expect(new Set(values).size).toBeGreaterThan(vocab / 2);
  });

  test.each([1, 5, 12, 33, 149])("chunks of %d give the same logits and KV bits", async (chunk) => {
    const table = opened.table(PROMPT, 20);
    expect(bits(await logits(opened, chunk, table))).toBe(whole);
    expect(digest(opened, table)).toBe(wholeBlocks);
  });

  test("blocks in reversed order hold the same bits", async () => {
    const table = opened.table(PROMPT, 40).reverse();
    expect(bits(await logits(opened, PROMPT, table))).toBe(whole);
    expect(digest(opened, table)).toBe(wholeBlocks);
  });

  test("two and three threads give the same bits", async () => {
    for (const threads of [2, 3]) {
      await using more = await OpenedEngine.open(file(), { kv, weights, threads });
      expect(bits(await logits(more, PROMPT, more.table(PROMPT)))).toBe(whole);
      expect(digest(more, more.table(PROMPT))).toBe(wholeBlocks);
    }
  });

  test("a copied cache continues as the original does", async () => {
    await using other = await OpenedEngine.open(file(), { kv, weights });
    const table = opened.table(PROMPT + 20);
    const moved = table.map((id) => (other.blocks - 1 - id) as BlockId);
    const original = tokensOf(await opened.generate(prompt, 20, { blockTable: table }));
    await logits(opened, PROMPT, table);
    for (const [index, id] of table.entries()) other.block(moved[index] as BlockId).set(opened.block(id));
    const continued = [original[0] ?? -1];
    while (continued.length < 20) {
      const pos = PROMPT + continued.length - 1;
      const row = { token: continued.at(-1) ?? -1, pos, blockTable: moved, sampling: sampling() };
      continued.push(...tokensOf(await other.engine.decode([row])));
    }
    expect(continued).toEqual(original);
  });

  test("rows of a batch have the bits that they have alone", async () => {
    const lengths = [1, 31, 32, 33, 64, 100, 149];
    const wanted = { logprobs: 5 };
    const rows = await Promise.all(
      lengths.map(async (length, index) => {
        const blockTable = opened.table(PROMPT + 1, index * 5);
        const tokens = Uint32Array.from(prompt.slice(0, length));
        await opened.engine.prefill({ tokens, startPos: 0, blockTable });
        return { token: prompt[length] ?? 0, pos: length, blockTable, sampling: sampling(wanted) };
      }),
    );
    const together = await opened.engine.decode(rows);
    for (const [index, row] of rows.entries()) {
      expect(await opened.engine.decode([row])).toEqual([together[index]]);
    }
    expect(new Set(tokensOf(together)).size, name).toBeGreaterThan(1);
  });
});
