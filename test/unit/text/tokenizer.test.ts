import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { GgufValue } from "../../../src/native/engine_binding.ts";
import { ChatTemplate, type TemplateMessage, Tokenizer } from "../../../src/worker/text/index.ts";
import { PIECE_CHARS, pieces, preTokenizers } from "../../../src/worker/text/pre_tokenizers.ts";
import { byteAlphabet } from "../../../src/worker/text/vocabulary.ts";
import { metadata } from "./tiny_model.ts";

interface Golden {
  readonly prompts: readonly {
    readonly name: string;
    readonly messages?: readonly TemplateMessage[];
    readonly text: string;
    readonly ids: readonly number[];
    readonly output_ids: readonly number[];
    readonly output_text: string;
  }[];
  readonly tokenization: readonly { readonly text: string; readonly ids: readonly number[] }[];
}

const models = new URL("../../../models/", import.meta.url);
const golden = JSON.parse(readFileSync(new URL("golden.json", models), "utf8")) as Golden;
const tokenizer = Tokenizer.fromMetadata(metadata);
const template = ChatTemplate.fromMetadata(metadata, tokenizer);

describe("the tokenizer of models/tiny.gguf", () => {
  test.each(golden.tokenization)("gives the golden ids of $text and their text back", ({ text, ids }) => {
    expect(tokenizer.encode(text, { specials: true })).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(text);
  });

  test.each(golden.prompts)("gives the golden ids of prompt $name and the golden text of its answer", (prompt) => {
    expect(tokenizer.encode(prompt.text, { specials: true })).toEqual(prompt.ids);
    expect(tokenizer.decode(prompt.output_ids, { skipSpecials: true })).toBe(prompt.output_text);
  });

  test.each(golden.prompts.filter(({ messages }) => messages !== undefined))(
    "renders the messages of $name to the golden text and ids",
    ({ messages, text, ids }) => {
      const rendered = template?.render(messages ?? [], { addGenerationPrompt: true });
      expect(rendered?.text).toBe(text);
      expect(tokenizer.encode(rendered?.text ?? "", { specials: true, guard: rendered?.guard })).toEqual(ids);
    },
  );

  test("ends answers at both end tokens and knows its size", () => {
    expect([...tokenizer.eosIds].sort()).toEqual([0, 2]);
    expect(tokenizer.bosId).toBe(1);
    expect(tokenizer.vocabulary.addBos).toBe(false);
    expect(tokenizer.vocabSize).toBe(768);
  });

  test("decode(encode(x)) is x for every well-formed text, special tokens or not", () => {
    const text = fc.array(
      fc.oneof(
        fc.string({ unit: "binary" }),
        fc.constantFrom(
          "<|im_start|>",
          "<|im_",
          "end|>",
          "  ",
          "\n\n",
          " \r\n",
          "'ll",
          "3.14",
          "\u00a0",
          "\u200d",
          "\u0085",
        ),
      ),
    );
    fc.assert(
      fc.property(text, fc.boolean(), (parts, specials) => {
        const joined = parts.join("");
        expect(tokenizer.decode(tokenizer.encode(joined, { specials }))).toBe(joined);
      }),
      { numRuns: 300 },
    );
  });

  test("without specials a control token's text is only text", () => {
    const ids = tokenizer.encode("<|im_end|>", { specials: false });
    expect(ids).not.toContain(2);
    expect(tokenizer.decode(ids)).toBe("<|im_end|>");
  });

  test("a lone surrogate becomes U+FFFD instead of an error", () => {
    expect(tokenizer.decode(tokenizer.encode("a\ud800b", { specials: true }))).toBe("a\ufffdb");
  });
});

describe("long texts", () => {
  const limit = { tokens: 2048, name: "max_seq_len" };

  test("10 MB are refused by their length alone, whatever they are", () => {
    for (const unit of ["a", " ", "1", "The pass key. ", "\u4f60", "\ud83d\udc69\u200d"]) {
      const text = unit.repeat(10_000_000 / Buffer.byteLength(unit));
      expect(() => tokenizer.encode(text, { specials: true, limit })).toThrow(
        expect.objectContaining({ code: "PROMPT_TOO_LONG", status: 413 }),
      );
    }
  });

  test("a limit that is just met is met, and one token more is refused", () => {
    const { text, ids } = golden.prompts.find(({ name }) => name === "key-1700") ?? { text: "", ids: [] };
    const exact = { tokens: ids.length, name: "max_seq_len" };
    expect(tokenizer.encode(text, { specials: true, limit: exact })).toEqual(ids);
    expect(() => tokenizer.encode(`${text}a`, { specials: true, limit: exact })).toThrow(
      /limit is 1876 \(max_seq_len\)/,
    );
  });

  test("more than a million characters without a word's end are refused by name", () => {
    expect(() => tokenizer.encode("a".repeat(1_200_000), { specials: true })).toThrow(
      expect.objectContaining({ code: "PROMPT_UNBROKEN", status: 413 }),
    );
  });
});

/** A tokenizer of some kind with bytes and a few merges, so that borders between words show in the ids. */
function syntheticMetadata(pre: GgufValue, merges: readonly string[]): Record<string, GgufValue> {
  const merged = merges.map((merge) => merge.replace(" ", ""));
  const control = ["<|begin|>", "<|end_of_text|>"];
  const tokens = [...byteAlphabet, ...merged, ...control, "<think>"];
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": tokens.map((token) => (token === "<think>" ? 4 : control.includes(token) ? 3 : 1)),
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.bos_token_id": tokens.indexOf("<|begin|>"),
    "tokenizer.ggml.eos_token_id": tokens.indexOf("<|end_of_text|>"),
    "tokenizer.ggml.add_bos_token": true,
  };
}

const pairs = [..."abc ".replace(" ", "\u0120"), "1", "2", "\u010a", "!", "."];
const everyPair = pairs.flatMap((left) => pairs.map((right) => `${left} ${right}`));
const everyTriple = pairs.flatMap((left) => pairs.flatMap((right) => pairs.map((last) => `${left}${right} ${last}`)));

interface PreTokenizerCase {
  readonly text: string;
  readonly ids: Readonly<Record<string, readonly number[]>>;
}

describe("pre-tokenizers", () => {
  test.each(["gpt2", "smollm", "llama-bpe", "qwen2"])(
    "%s gives the ids of the Rust library on texts of all scripts",
    (pre) => {
      const fixture = new URL("../../fixtures/pre_tokenizers.json", import.meta.url);
      const { cases } = JSON.parse(readFileSync(fixture, "utf8")) as { cases: PreTokenizerCase[] };
      const some = Tokenizer.fromMetadata({ ...metadata, "tokenizer.ggml.pre": pre });
      expect(cases.length).toBeGreaterThan(50);
      for (const { text, ids } of cases) expect(some.encode(text, { specials: true }), text).toEqual(ids[pre]);
    },
  );

  const words = (pre: string, text: string): string[] => {
    const kind = Tokenizer.fromMetadata(syntheticMetadata(pre, [...everyPair, ...everyTriple]));
    return kind.encode(text, { specials: false }).map((id) => kind.decode([id]));
  };

  test("cut numbers and line breaks as each kind does", () => {
    expect(words("gpt2", "1212")).toEqual(["12", "12"]);
    expect(words("default", "1212")).toEqual(["12", "12"]);
    expect(words("smollm", "1212")).toEqual(["1", "2", "1", "2"]);
    expect(words("qwen2", "1212")).toEqual(["1", "2", "1", "2"]);
    expect(words("llama-bpe", "1212")).toEqual(["121", "2"]);
    expect(words("gpt2", " 1")).toEqual([" 1"]);
    expect(words("llama-bpe", " 1")).toEqual([" ", "1"]);
    expect(words("gpt2", "!\n")).toEqual(["!", "\n"]);
    expect(words("qwen2", "!\n")).toEqual(["!\n"]);
    expect(words("gpt2", ".a")).toEqual([".", "a"]);
    expect(words("llama-bpe", ".a")).toEqual([".a"]);
    expect(words("gpt2", "a  b")).toEqual(["a", " ", " b"]);
  });

  test.each([
    ["tokenizer.ggml.pre", { "tokenizer.ggml.pre": "tekken" }, '"tekken"'],
    ["tokenizer.ggml.model", { "tokenizer.ggml.model": "llama" }, '"llama"'],
  ])("another %s is refused by its name", (key, change, value) => {
    const bad = { ...syntheticMetadata("gpt2", []), ...change };
    expect(() => Tokenizer.fromMetadata(bad)).toThrow(
      expect.objectContaining({ code: "TOKENIZER_UNSUPPORTED", message: expect.stringContaining(`${key} = ${value}`) }),
    );
  });

  test("a file without tokenizer.ggml.pre is read as GPT-2's", () => {
    const { "tokenizer.ggml.pre": _, ...rest } = syntheticMetadata("gpt2", ["a b"]);
    expect(Tokenizer.fromMetadata(rest).vocabulary.kind).toBe("gpt2");
  });

  test.each([
    ["tokens are no list", { "tokenizer.ggml.tokens": 7 }],
    ["a type is missing", { "tokenizer.ggml.token_type": [1, 1] }],
    ["a merge gives no token", { "tokenizer.ggml.merges": ["a z"] }],
    ["a merge has no space", { "tokenizer.ggml.merges": ["az"] }],
    ["the end token is outside", { "tokenizer.ggml.eos_token_id": 100_000 }],
  ])("%s: refused as TOKENIZER_BROKEN", (_, change) => {
    expect(() => Tokenizer.fromMetadata({ ...syntheticMetadata("gpt2", []), ...change })).toThrow(
      expect.objectContaining({ code: "TOKENIZER_BROKEN" }),
    );
  });

  test("a byte without a token is left out, as the model's original tokenizer does", () => {
    const whole = syntheticMetadata("gpt2", []);
    const tokens = (whole["tokenizer.ggml.tokens"] as string[]).with(4, "unreachable");
    const some = Tokenizer.fromMetadata({ ...whole, "tokenizer.ggml.tokens": tokens });
    expect(some.decode(some.encode("a\u0004b", { specials: true }))).toBe("ab");
  });

  test("user-defined tokens are tokens in any text, control tokens only where asked for", () => {
    const some = Tokenizer.fromMetadata(syntheticMetadata("qwen2", []));
    const think = some.vocabSize - 1;
    expect(some.encode("<think>", { specials: false })).toEqual([think]);
    expect(some.encode("<|begin|><think>", { specials: true })).toEqual([think - 2, think]);
    expect(some.decode([think - 2, think], { skipSpecials: true })).toBe("<think>");
  });

  test.each(["gpt2", "smollm", "llama-bpe", "qwen2"] as const)(
    "pieces of a long text give the tokens of the whole: %s",
    (kind) => {
      const some = Tokenizer.fromMetadata(syntheticMetadata(kind, [...everyPair, ...everyTriple]));
      const snippet = fc.constantFrom(
        ..."abcAB12 \n!.",
        "  ",
        "'s",
        "\r\n",
        "\u0301",
        "\u4f60",
        "\ud835\udc00",
        "\u00a0",
        "\t",
      );
      fc.assert(
        fc.property(fc.array(snippet, { minLength: 40, maxLength: 80 }), (parts) => {
          const text = parts.join("");
          const long = text.repeat(Math.ceil((2 * PIECE_CHARS) / text.length));
          const cut = [...pieces(long)];
          expect(cut.join("")).toBe(long);
          const whole = wordsOf(some, long);
          expect(cut.flatMap((piece) => wordsOf(some, piece))).toEqual(whole);
        }),
        { numRuns: 15 },
      );
    },
  );

  /** The pre-tokenizer's words, by its own patterns: what pieces must not change. */
  function wordsOf(some: Tokenizer, text: string): string[] {
    let sections = [text];
    for (const { pattern } of preTokenizers[some.vocabulary.kind].steps) {
      const source = pattern.Regex.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])",
      );
      sections = sections.flatMap((section) =>
        section.split(new RegExp(`(${source})`, "gu")).filter((word) => word !== ""),
      );
    }
    return sections;
  }
});
