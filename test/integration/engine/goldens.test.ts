import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { BlockId } from "../../../src/ids.ts";
import { type Golden, goldens, OpenedEngine, sampling, TINY, tokensOf } from "./opened_engine.ts";

let opened: OpenedEngine;
beforeAll(async () => {
  opened = await OpenedEngine.open(TINY, { blocks: 512 });
});
afterAll(() => opened[Symbol.asyncDispose]());

const prompts = goldens();

describe("every golden prompt is answered token for token", () => {
  test.each(prompts.map((golden) => [golden.name, golden] as const))("%s: prefilled at once", async (_, golden) => {
    const answer = await opened.generate(golden.ids, golden.output_ids.length);
    expect(tokensOf(answer)).toEqual(golden.output_ids);
  });

  test.each([1, 7, 32, 100, 256, 257])("in chunks of %d tokens", async (chunk) => {
    for (const { ids, output_ids } of prompts) {
      expect(tokensOf(await opened.generate(ids, output_ids.length, { chunk }))).toEqual(output_ids);
    }
  });

  test("with its blocks in reversed order, at the end of the pool", async () => {
    for (const { ids, output_ids } of prompts) {
      const blockTable = opened.table(ids.length + output_ids.length).map((id) => (opened.blocks - 1 - id) as BlockId);
      expect(tokensOf(await opened.generate(ids, output_ids.length, { blockTable }))).toEqual(output_ids);
    }
  });

  test("with two threads", async () => {
    await using two = await OpenedEngine.open(TINY, { threads: 2 });
    for (const { ids, output_ids } of prompts) {
      expect(tokensOf(await two.generate(ids, output_ids.length))).toEqual(output_ids);
    }
  });

  test("with blocks of 16 tokens", async () => {
    await using small = await OpenedEngine.open(TINY, { tokensPerBlock: 16, blocks: 128 });
    for (const { ids, output_ids } of prompts) {
      expect(tokensOf(await small.generate(ids, output_ids.length))).toEqual(output_ids);
    }
  });

  test("eight at once, decoded in one batch", async () => {
    for (let first = 0; first < prompts.length; first += 8) {
      const batch = prompts.slice(first, first + 8);
      expect(await decodeTogether(batch)).toEqual(batch.map(({ output_ids }) => output_ids));
    }
  });
});

/** Sequences of a batch end at their own times, so its size shrinks as it goes. */
async function decodeTogether(batch: readonly Golden[]): Promise<number[][]> {
  let block = 0;
  const sequences = batch.map(({ ids, output_ids }) => {
    const blockTable = opened.table(ids.length + output_ids.length, block);
    block += blockTable.length;
    return { ids, wanted: output_ids.length, blockTable, output: [] as number[] };
  });
  for (const { ids, blockTable, output } of sequences) {
    const sample = await opened.engine.prefill({
      tokens: Uint32Array.from(ids),
      startPos: 0,
      blockTable,
      sampling: sampling(),
    });
    if (sample !== undefined) output.push(sample.token);
  }
  for (;;) {
    const running = sequences.filter(({ output, wanted }) => output.length < wanted);
    if (running.length === 0) return sequences.map(({ output }) => output);
    const samples = await opened.engine.decode(
      running.map(({ ids, output, blockTable }) => ({
        token: output.at(-1) ?? 0,
        pos: ids.length + output.length - 1,
        blockTable,
        sampling: sampling({ index: output.length }),
      })),
    );
    for (const [index, { output }] of running.entries()) output.push(samples[index]?.token ?? -1);
  }
}
