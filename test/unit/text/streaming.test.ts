import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { IncrementalDetokenizer, StopStrings, type TokenBytes, Tokenizer } from "../../../src/worker/text/index.ts";
import { metadata } from "./tiny_model.ts";

/** Token ids are indices into a list of byte strings; negative ids are special. */
const tokensOf = (parts: readonly Uint8Array[]): TokenBytes => ({
  bytesOf: (id) => (id < 0 ? new TextEncoder().encode("<|special|>") : (parts[id] ?? new Uint8Array())),
  isSpecial: (id) => id < 0,
});

const anyBytes = fc.uint8Array({ maxLength: 5 });

describe("IncrementalDetokenizer", () => {
  test("gives the same text for any split of any text into tokens, and never half a character", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.array(fc.nat(5)), (text, sizes) => {
        const bytes = new TextEncoder().encode(text);
        const parts: Uint8Array[] = [];
        for (let at = 0, next = 0; at < bytes.length; next++) {
          const size = sizes[next % Math.max(1, sizes.length)] ?? 1;
          parts.push(bytes.subarray(at, at + Math.max(size, next > 200 ? 1 : 0)));
          at += Math.max(size, next > 200 ? 1 : 0);
        }
        const detokenizer = new IncrementalDetokenizer(tokensOf(parts), { skipSpecials: true });
        const pieces = parts.map((_, id) => detokenizer.push(id));
        pieces.push(detokenizer.flush());
        expect(pieces.join("")).toBe(text);
        for (const piece of pieces) expect(/\p{Cs}/u.test(piece)).toBe(false);
      }),
      { numRuns: 500 },
    );
  });

  test("bytes that are no UTF-8 become what decoding all of them at once makes of them", () => {
    fc.assert(
      fc.property(fc.array(anyBytes), (parts) => {
        const detokenizer = new IncrementalDetokenizer(tokensOf(parts), { skipSpecials: true });
        const text = parts.map((_, id) => detokenizer.push(id)).join("") + detokenizer.flush();
        expect(text).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(Buffer.concat(parts)));
      }),
      { numRuns: 500 },
    );
  });

  test("a character that the hand-off splits comes out whole with the first token that completes it", () => {
    const smile = new TextEncoder().encode("\u{1F600}");
    const tokens = tokensOf([smile.subarray(0, 1), smile.subarray(1, 3), smile.subarray(3)]);
    const detokenizer = new IncrementalDetokenizer(tokens, { skipSpecials: true });
    expect([0, 1, 2].map((id) => detokenizer.push(id))).toEqual(["", "", "\u{1F600}"]);
  });

  test("special tokens are text only when asked for", () => {
    const tokens = tokensOf([]);
    expect(new IncrementalDetokenizer(tokens, { skipSpecials: true }).push(-1)).toBe("");
    expect(new IncrementalDetokenizer(tokens, { skipSpecials: false }).push(-1)).toBe("<|special|>");
  });

  test("agrees with the tokenizer of models/tiny.gguf on every golden string", () => {
    const models = new URL("../../../models/", import.meta.url);
    const tokenizer = Tokenizer.fromMetadata(metadata);
    const { tokenization } = JSON.parse(readFileSync(new URL("golden.json", models), "utf8")) as {
      tokenization: { text: string; ids: number[] }[];
    };
    for (const { text, ids } of tokenization) {
      const detokenizer = new IncrementalDetokenizer(tokenizer, { skipSpecials: false });
      expect(ids.map((id) => detokenizer.push(id)).join("") + detokenizer.flush()).toBe(text);
    }
  });
});

/** By definition: the stop string whose end comes first, of several with that end the longest. */
function oracle(text: string, stops: readonly string[]): { text: string; stopped?: string } {
  for (let end = 1; end <= text.length; end++) {
    const complete = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0];
    if (complete !== undefined) return { text: text.slice(0, end - complete.length), stopped: complete };
  }
  return { text };
}

const fewLetters = (max: number) => fc.string({ unit: fc.constantFrom("a", "b", "\u{1F600}"), maxLength: max });

describe("StopStrings", () => {
  test("find what the definition finds, in any pieces, and send all and only the text before it", () => {
    fc.assert(
      fc.property(
        fc.array(fewLetters(4), { maxLength: 12 }),
        fc.array(
          fewLetters(5).filter((stop) => stop !== ""),
          { maxLength: 4 },
        ),
        fc.boolean(),
        (pieces, stops, include) => {
          const expected = oracle(pieces.join(""), stops);
          const matcher = new StopStrings(stops, { include });
          let sent = "";
          let stopped: string | undefined;
          for (const piece of pieces) {
            const result = matcher.push(piece);
            sent += result.text;
            stopped ??= result.stopped;
            expect(expected.text.startsWith(sent) || stopped !== undefined).toBe(true);
          }
          if (stopped === undefined) sent += matcher.flush();
          expect(stopped).toBe(expected.stopped);
          expect(sent).toBe(expected.text + (include ? (stopped ?? "") : ""));
        },
      ),
      { numRuns: 2000 },
    );
  });

  test("hold back no more than what may begin a stop string", () => {
    const matcher = new StopStrings(["\n\nUser:"]);
    expect(matcher.push("Hello\n")).toEqual({ text: "Hello" });
    expect(matcher.push("\nUs")).toEqual({ text: "" });
    expect(matcher.push("ual")).toEqual({ text: "\n\nUsual" });
    expect(matcher.push(" end\n\nUser")).toEqual({ text: " end" });
    expect(matcher.push(": x")).toEqual({ text: "", stopped: "\n\nUser:" });
    expect(matcher.push("more")).toEqual({ text: "" });
    expect(matcher.flush()).toBe("");
  });

  test("what was held back is text when the answer ends otherwise", () => {
    const matcher = new StopStrings(["END"]);
    expect(matcher.push("the EN")).toEqual({ text: "the " });
    expect(matcher.flush()).toBe("EN");
  });

  test("a long repetitive stop string against long repetitive text costs linear time: quadratic would outlast the limit", () => {
    const matcher = new StopStrings([`${"a".repeat(1023)}b`]);
    for (let count = 0; count < 2000; count++) matcher.push("a".repeat(100));
  });
});
