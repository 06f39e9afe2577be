import { describe, expect, it } from "vitest";
import { CompletionRequest, completionParams, parseRequest } from "../../../src/openai/index.ts";
import { Answer, type AnswerPiece } from "../../../src/worker/answer.ts";
import type { Finish } from "../../../src/worker/request.ts";

/** Each token is one byte of UTF-8; 0 is the end token. */
const bytes = { bytesOf: (id: number) => Uint8Array.of(id), isSpecial: (id: number) => id === 0 };
const END: Finish = { reason: "stop", stop: null };

/** Feeds the bytes of `text`, then the end token unless something ended before. */
function run(text: string, request: Record<string, unknown> = {}): { pieces: AnswerPiece[]; end: Finish | null } {
  const params = completionParams(parseRequest(CompletionRequest, { prompt: "x", ...request }), 256);
  const pieces: AnswerPiece[] = [];
  const answer = new Answer(params, bytes, (piece) => pieces.push(piece));
  let end: Finish | null = null;
  for (const [index, token] of [...Buffer.from(text), 0].entries()) {
    const sample = { token, logprobs: { logprob: -1, top: [{ token, logprob: -1 }] } };
    end = answer.onToken(sample, index, token === 0 ? END : null);
    if (end !== null) break;
  }
  return { pieces, end };
}

const textOf = (pieces: readonly AnswerPiece[]): string => pieces.map(({ text }) => text).join("");

describe("the answer of a request", () => {
  it("gives a character once all its bytes are there, and says where each token begins", () => {
    const { pieces, end } = run("a€b", { logprobs: 1 });
    expect(pieces.map(({ text }) => text)).toEqual(["a", "", "", "€", "b", ""]);
    expect(pieces.map(({ offset }) => offset)).toEqual([0, 1, 1, 1, 2, 3]);
    expect(end).toEqual(END);
  });

  it("shows neither text nor log probability of the token that ends it", () => {
    const { pieces } = run("ab", { logprobs: 1 });
    expect(pieces.map(({ logprobs }) => logprobs.length)).toEqual([1, 1, 0]);
    expect(pieces.at(-1)?.ending).toEqual({ finishReason: "stop", stopReason: null });
  });

  it("ends with the stop string that is complete first, and gives nothing of it", () => {
    const { pieces, end } = run("one two three", { stop: ["three", "two t"] });
    expect(textOf(pieces)).toBe("one ");
    expect(end).toEqual({ reason: "stop", stop: "two t" });
    expect(textOf(run("one two three", { stop: ["two"], include_stop_str_in_output: true }).pieces)).toBe("one two");
  });

  it("gives what it held back for a stop string that did not come", () => {
    expect(textOf(run("one tw", { stop: ["two"] }).pieces)).toBe("one tw");
  });

  it("looks for stop strings from min_tokens on", () => {
    const { pieces, end } = run("abab", { stop: ["b"], min_tokens: 3 });
    expect(textOf(pieces)).toBe("aba");
    expect(end).toEqual({ reason: "stop", stop: "b" });
  });

  it("ends half a character with U+FFFD", () => {
    const broken = Buffer.from("€").subarray(0, 2).toString("latin1");
    const params = completionParams(parseRequest(CompletionRequest, { prompt: "x" }), 256);
    const pieces: AnswerPiece[] = [];
    const answer = new Answer(params, bytes, (piece) => pieces.push(piece));
    for (const [index, token] of [...Buffer.from(broken, "latin1")].entries()) {
      answer.onToken({ token }, index, index === 1 ? { reason: "length", stop: null } : null);
    }
    expect(textOf(pieces)).toBe("\uFFFD");
  });
});
