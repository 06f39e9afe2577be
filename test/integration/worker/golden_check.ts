import { expect } from "vitest";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { Tokenizer } from "../../../src/worker/text/index.ts";
import type { Body, Reply } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { tinyModel } from "./worker_process.ts";

const engine = await ReferenceEngine.load(tinyModel);
export const tokenizer = Tokenizer.fromMetadata(engine.metadata);
await engine.close();

const ends = new Set(tokenizer.eosIds);

/** Text, ending, usage, and the bytes of each output token (those of the end token are never shown). */
export function expectGolden(reply: Reply, golden: Golden): void {
  const shown = golden.outputIds.filter((id) => !ends.has(id));
  expect(reply, golden.name).toMatchObject({
    text: golden.outputText,
    finish: shown.length < golden.outputIds.length ? "stop" : "length",
    promptTokens: golden.ids.length,
    outputTokens: golden.outputIds.length,
  });
  const bytes = shown.map((id) => Array.from(tokenizer.bytesOf(id)));
  if (golden.kind === "chat") {
    expect((reply.logprobs as { bytes: number[] }[]).map((entry) => entry.bytes)).toEqual(bytes);
  } else {
    const { tokens } = reply.logprobs as { tokens: string[] };
    expect(tokens).toEqual(bytes.map((each) => Buffer.from(each).toString()));
  }
}

/** Asks for one golden; `more` goes over its body. */
export type AskGolden = (golden: Golden, more?: Body) => Promise<Reply>;

export async function expectAllWhole(run: AskGolden): Promise<void> {
  for (const golden of goldens) expectGolden(await run(golden), golden);
}

export async function expectAllStreamed(run: AskGolden): Promise<void> {
  for (const golden of goldens) {
    const streamed = await run(golden, { stream: true, stream_options: { include_usage: true } });
    expect(streamed).toMatchObject({
      text: golden.outputText,
      promptTokens: golden.ids.length,
      outputTokens: golden.outputIds.length,
    });
  }
}

export async function expectEightAtOnce(run: AskGolden): Promise<void> {
  for (let from = 0; from < goldens.length; from += 8) {
    const group = goldens.slice(from, from + 8);
    const replies = await Promise.all(group.map((golden) => run(golden)));
    for (const [index, reply] of replies.entries()) expectGolden(reply, group[index] as Golden);
  }
}
