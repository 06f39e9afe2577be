import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ChatCompletionRequest, CompletionRequest, chatParams, completionParams } from "../../../src/openai/index.ts";
import { ChatTemplate, readPrompt, Tokenizer } from "../../../src/worker/text/index.ts";
import { ControlTokens } from "../../../src/worker/text/special_tokens.ts";
import { metadata } from "./tiny_model.ts";

const tokenizer = Tokenizer.fromMetadata(metadata);
const chatMl = new ChatTemplate(String(metadata["tokenizer.chat_template"]), tokenizer);
const control = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];

const encode = (template: ChatTemplate, content: string, specialsInContent = false): number[] => {
  const { text, guard } = template.render([{ role: "user", content }], {
    addGenerationPrompt: true,
    specialsInContent,
  });
  return tokenizer.encode(text, { specials: true, guard });
};
const controlIds = (ids: readonly number[]): number[] => ids.filter((id) => tokenizer.isSpecial(id));

/** Control tokens whole and in pieces, so that neighbours often form one. */
const hostile = fc
  .array(
    fc.oneof(
      fc.string({ maxLength: 3 }),
      fc.constantFrom(...control),
      fc
        .tuple(fc.constantFrom(...control), fc.nat(13), fc.nat(13))
        .map(([token, from, to]) => token.slice(Math.min(from, to), Math.max(from, to))),
    ),
    { maxLength: 6 },
  )
  .map((parts) => parts.join(""));

describe("control tokens in message text", () => {
  test("stay text: the prompt has the template's control tokens only, and the text comes back whole", () => {
    fc.assert(
      fc.property(hostile, (content) => {
        const ids = encode(chatMl, content);
        expect(controlIds(ids)).toEqual([1, 2, 1]);
        expect(tokenizer.decode(ids)).toBe(`<|im_start|>user\n${content}<|im_end|>\n<|im_start|>assistant\n`);
      }),
      { numRuns: 1000 },
    );
  });

  test("can't be put together from the template's own text and pieces in several fields", () => {
    const glued = new ChatTemplate("<|im_{{ messages[0].name }}{{ messages[0].content }}{{ extra }}|>", tokenizer);
    fc.assert(
      fc.property(hostile, hostile, hostile, (name, content, extra) => {
        const rendered = glued.render([{ role: "user", name, content }], {
          addGenerationPrompt: true,
          values: { extra },
        });
        const ids = tokenizer.encode(rendered.text, { specials: true, guard: rendered.guard });
        // Template text on both sides of a name that fields only fill in is the template's own doing, as with roles.
        const wanted = ["start", "end"].includes(name + content + extra);
        expect(controlIds(ids)).toEqual(wanted ? [expect.any(Number)] : []);
      }),
      { numRuns: 1000 },
    );
  });

  test("are tokens when the request says so", () => {
    expect(controlIds(encode(chatMl, "a<|im_end|>b", true))).toEqual([1, 2, 2, 1]);
  });

  test("text without them is not touched, so templates that trim and look into it see what was sent", () => {
    const plain = " plain text, 1 < 2 and a|b ";
    expect(new ControlTokens(control).guard(plain, "\ufdd0")).toBe(plain);
    const trimming = new ChatTemplate("{{ messages[0].content | trim }}", tokenizer);
    expect(tokenizer.decode(encode(trimming, "  a <|im_end|> b  "))).toBe("a <|im_end|> b");
  });

  test("ten megabytes of message text with hundreds of control tokens to look for are guarded before the limit", () => {
    const many = new ControlTokens(Array.from({ length: 256 }, (_, at) => `<|reserved_${at}|>`));
    for (const unit of ["a < b and more. ", "<|reserved_7|>", "<"]) {
      many.guard(unit.repeat(10_000_000 / unit.length), "\ufdd0");
    }
  });

  test("the guard is a noncharacter that the messages don't hold; holding all of them is a clear refusal", () => {
    const some = Array.from({ length: 31 }, (_, at) => String.fromCharCode(0xfdd0 + at)).join("");
    expect(tokenizer.decode(encode(chatMl, `${some}<|im_end|>`))).toContain(`${some}<|im_end|>`);
    expect(() => encode(chatMl, `${some}\ufdef`)).toThrow(expect.objectContaining({ code: "INVALID_REQUEST" }));
  });
});

describe("templates", () => {
  test("a template's own refusal reaches the client as a sentence", () => {
    const strict = new ChatTemplate("{{ raise_exception('roles must alternate') }}", tokenizer);
    expect(() => encode(strict, "x")).toThrow(
      expect.objectContaining({
        code: "CHAT_TEMPLATE_FAILED",
        status: 400,
        message: expect.stringContaining("roles must alternate"),
      }),
    );
  });

  test("a template that can't be parsed leaves completions alone and fails chat with the reason", () => {
    const broken = new ChatTemplate("{% for %}", tokenizer);
    expect(() => encode(broken, "x")).toThrow(expect.objectContaining({ code: "CHAT_TEMPLATE_FAILED" }));
  });

  test("the client's values reach the template but hide nothing of ours", () => {
    const shows = new ChatTemplate("{{ mood }} {{ bos_token }} {{ messages | length }}", tokenizer);
    const { text } = shows.render([{ role: "user", content: "x" }], {
      addGenerationPrompt: true,
      values: { mood: "calm", bos_token: "forged", messages: "forged" },
    });
    expect(text).toBe("calm <|im_start|> 1");
  });
});

describe("readPrompt", () => {
  const limit = { tokens: 64, name: "max_num_tokens" };
  const reader = { model: "tiny", tokenizer, template: chatMl, limit };
  const chat = (body: object) => chatParams(ChatCompletionRequest.parse(body), tokenizer.vocabSize);
  const completion = (body: object) => completionParams(CompletionRequest.parse(body), tokenizer.vocabSize);

  test("takes text, one-element lists and ids, and counts control tokens in a plain prompt as tokens", async () => {
    const ids = Uint32Array.of(1, 303, 201, 42, 75, 2, 201);
    const text = "<|im_start|>user\nHi<|im_end|>\n";
    for (const prompt of [text, [text], [...ids]]) {
      await expect(readPrompt(completion({ prompt }), reader)).resolves.toEqual(ids);
    }
    await expect(readPrompt(completion({ prompt: "x", prompt_token_ids: [5, 6] }), reader)).resolves.toEqual(
      Uint32Array.of(5, 6),
    );
  });

  test("joins text parts and reads developer as system", async () => {
    const parts = [
      {
        role: "developer",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
      { role: "user", content: "c" },
    ];
    const joined = [
      { role: "system", content: "a\nb" },
      { role: "user", content: "c" },
    ];
    await expect(readPrompt(chat({ messages: parts }), reader)).resolves.toEqual(
      await readPrompt(chat({ messages: joined }), reader),
    );
  });

  test("adds the bos where the model asks for one, on completions and unless told not to", async () => {
    const withBos = new Tokenizer({ ...tokenizer.vocabulary, addBos: true });
    const bosReader = { ...reader, tokenizer: withBos };
    await expect(readPrompt(completion({ prompt: "a" }), bosReader)).resolves.toEqual(Uint32Array.of(1, 67));
    await expect(readPrompt(completion({ prompt: "" }), bosReader)).resolves.toEqual(Uint32Array.of(1));
    await expect(readPrompt(completion({ prompt: "a", add_special_tokens: false }), bosReader)).resolves.toEqual(
      Uint32Array.of(67),
    );
    const spelled = { ...bosReader, limit: { tokens: 3, name: "max_num_tokens" } };
    await expect(readPrompt(completion({ prompt: "1 1" }), spelled)).rejects.toThrow(/4 tokens, the limit is 3/);
  });

  test.each([
    [{ prompt: "" }, "INVALID_REQUEST"],
    [{ prompt: "1".repeat(65) }, "PROMPT_TOO_LONG"],
    [{ prompt: Array.from({ length: 65 }, () => 5) }, "PROMPT_TOO_LONG"],
    [{ prompt: "The pass key. ".repeat(700_000) }, "PROMPT_TOO_LONG"],
  ])("refuses %#: %j as %s", async (body, code) => {
    await expect(readPrompt(completion(body), reader)).rejects.toThrow(expect.objectContaining({ code }));
  });

  test("a model without a template says so on chat", async () => {
    const params = chat({ messages: [{ role: "user", content: "x" }] });
    await expect(readPrompt(params, { ...reader, template: undefined })).rejects.toThrow(
      expect.objectContaining({ code: "NO_CHAT_TEMPLATE", status: 400 }),
    );
  });
});
