import { expect } from "vitest";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { Tokenizer } from "../../../src/worker/text/index.ts";
import type { Reply } from "./client.ts";
import type { Golden } from "./golden.ts";
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
