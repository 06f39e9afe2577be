import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { fieldNotes } from "../../../src/openai/fields.ts";
import {
  ChatCompletionRequest,
  CompletionRequest,
  chatParams,
  completionParams,
  DisaggregatedParams,
  type GenerationParams,
  parseBody,
  parseRequest,
  RoutedRequest,
} from "../../../src/openai/index.ts";

const VOCAB = 768;
const completion = (body: object): GenerationParams =>
  completionParams(parseRequest(CompletionRequest, { prompt: "x", ...body }), VOCAB);
const chat = (body: object): GenerationParams =>
  chatParams(parseRequest(ChatCompletionRequest, { messages: [{ role: "user", content: "x" }], ...body }), VOCAB);

const refusal = (make: () => unknown): KvError => {
  try {
    make();
  } catch (error) {
    if (error instanceof KvError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
};

describe("defaults", () => {
  test("are OpenAI's, and null means absent", () => {
    const nulls = { max_tokens: null, temperature: null, stop: null, seed: null, logprobs: null, n: null, user: null };
    for (const params of [completion({}), completion(nulls)]) {
      expect(params).toMatchObject({
        kind: "completion",
        prompt: { from: "text", text: "x" },
        maxTokens: 16,
        minTokens: 0,
        sampling: {
          temperature: 1,
          topP: 1,
          topK: 0,
          minP: 0,
          repetitionPenalty: 1,
          seed: undefined,
          logprobs: -1,
          bias: [],
        },
        stop: [],
        echo: false,
        stream: false,
        includeUsage: false,
        skipSpecialTokens: true,
        addSpecialTokens: true,
      });
    }
    expect(chat({})).toMatchObject({ kind: "chat", maxTokens: undefined, addSpecialTokens: false, echo: false });
  });
});

describe("conversion", () => {
  test("reads every supported field", () => {
    const params = completion({
      model: "tiny",
      max_tokens: 5,
      min_tokens: 2,
      temperature: 0.5,
      top_p: 0.9,
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.1,
      presence_penalty: 0.2,
      frequency_penalty: -0.2,
      seed: -1,
      logprobs: 3,
      logit_bias: { "5": -100, "767": 2 },
      stop: ["a", "b"],
      stop_token_ids: [7],
      include_stop_str_in_output: true,
      ignore_eos: true,
      skip_special_tokens: false,
      add_special_tokens: false,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(params).toEqual({
      kind: "completion",
      model: "tiny",
      prompt: { from: "text", text: "x" },
      maxTokens: 5,
      minTokens: 2,
      sampling: {
        temperature: 0.5,
        topP: 0.9,
        topK: 0,
        minP: 0.1,
        repetitionPenalty: 1.1,
        presencePenalty: 0.2,
        frequencyPenalty: -0.2,
        seed: 2n ** 64n - 1n,
        logprobs: 3,
        bias: [
          { token: 5, bias: -100 },
          { token: 767, bias: 2 },
        ],
      },
      stop: ["a", "b"],
      stopTokenIds: [7],
      includeStop: true,
      ignoreEos: true,
      skipSpecialTokens: false,
      addSpecialTokens: false,
      echo: false,
      stream: true,
      includeUsage: true,
      disaggregated: undefined,
    });
    expect(chat({ logprobs: true, top_logprobs: 5 }).sampling.logprobs).toBe(5);
    expect(chat({ logprobs: true }).sampling.logprobs).toBe(0);
    expect(completion({ top_p: 0 }).sampling.topP).toBeGreaterThan(0);
    expect(chat({ max_tokens: 7 }).maxTokens).toBe(7);
    expect(chat({ max_tokens: 7, max_completion_tokens: 7 }).maxTokens).toBe(7);
  });

  test("keeps 64-bit ids and seeds exact from the wire to the parameters", () => {
    const body = parseBody(`{"prompt":[1,2],"seed":18446744073709551615,"disaggregated_params":
      {"request_type":"generation_only","ctx_request_id":4611686018427387905,"disagg_request_id":7,"first_gen_tokens":[5],
       "first_gen_log_probs":[{"logprob":-0.5,"top":[{"token":5,"logprob":-0.5}]}],"encoded_opaque_state":"AAAA"}}`);
    const params = completionParams(parseRequest(CompletionRequest, body), VOCAB);
    expect(params.sampling.seed).toBe(2n ** 64n - 1n);
    expect(params.disaggregated).toEqual({
      request_type: "generation_only",
      ctx_request_id: 2n ** 62n + 1n,
      disagg_request_id: 7n,
      first_gen_tokens: [5],
      first_gen_log_probs: [{ logprob: -0.5, top: [{ token: 5, logprob: -0.5 }] }],
      encoded_opaque_state: "AAAA",
    });
    expect(params.prompt).toEqual({ from: "ids", ids: [1, 2] });
  });
});

describe("refusals name the field", () => {
  test.each([
    [{ prompt: ["a", "b"] }, "INVALID_REQUEST", "prompt", /several prompts/],
    [{ prompt: [[1, 2]] }, "INVALID_REQUEST", "prompt", /several prompts/],
    [{ prompt: [] }, "INVALID_REQUEST", "prompt", /no token/],
    [{ prompt: [1, -2] }, "INVALID_REQUEST", "prompt", /several prompts|token ids/],
    [{ prompt: [1, 768] }, "INVALID_REQUEST", "prompt", /token id 768 at index 1 .* vocabulary of 768/],
    [{ prompt: null }, "INVALID_REQUEST", "prompt", /missing/],
    [{ n: 2 }, "UNSUPPORTED_PARAMETER", "n", /one answer/],
    [{ best_of: 2 }, "UNSUPPORTED_PARAMETER", "best_of", /one answer/],
    [{ suffix: "x" }, "UNSUPPORTED_PARAMETER", "suffix", /middle/],
    [{ max_tokens: 0 }, "INVALID_REQUEST", "max_tokens", />=1/],
    [{ max_tokens: "5" }, "INVALID_REQUEST", "max_tokens", /expected (number|int)/],
    [{ max_tokens: 2, min_tokens: 3 }, "INVALID_REQUEST", "min_tokens", /more than max_tokens/],
    [{ temperature: 3 }, "INVALID_REQUEST", "temperature", /<=2/],
    [{ seed: 1.5 }, "INVALID_REQUEST", "seed", /64-bit/],
    [{ seed: 1e300 }, "INVALID_REQUEST", "seed", /64-bit/],
    [{ seed: 2n ** 64n }, "INVALID_REQUEST", "seed", /64-bit/],
    [{ stop: "" }, "INVALID_REQUEST", "stop", /./],
    [{ stop: Array(17).fill("a") }, "INVALID_REQUEST", "stop", /./],
    [{ stop: "\ud800" }, "INVALID_REQUEST", "stop", /./],
    [{ logit_bias: { "768": 1 } }, "INVALID_REQUEST", "logit_bias", /768/],
    [{ logit_bias: { x: 1 } }, "INVALID_REQUEST", "logit_bias.x", /./],
    [{ echo: true, logprobs: 1 }, "UNSUPPORTED_PARAMETER", "echo", /logprobs/],
    [{ stream_options: { include_usage: true } }, "INVALID_REQUEST", "stream_options", /stream: true/],
    [{ stream: true, stream_options: { x: 1 } }, "UNKNOWN_PARAMETER", "stream_options.x", /./],
    [{ guided_json: {} }, "UNSUPPORTED_PARAMETER", "guided_json", /constrained/],
    [{ response_format: { type: "json_object" } }, "UNSUPPORTED_PARAMETER", "response_format", /constrained/],
    [{ temprature: 1 }, "UNKNOWN_PARAMETER", "temprature", /not a field/],
    [{ disaggregated_params: {} }, "INVALID_REQUEST", "disaggregated_params.request_type", /./],
    [
      { disaggregated_params: { request_type: "context_only", novel: 1 } },
      "UNKNOWN_PARAMETER",
      "disaggregated_params.novel",
      /./,
    ],
    [
      { disaggregated_params: { request_type: "context_only", ctx_request_id: -1 } },
      "INVALID_REQUEST",
      "disaggregated_params.ctx_request_id",
      /2\^64/,
    ],
    [
      { disaggregated_params: { request_type: "generation_only", first_gen_tokens: [768] } },
      "INVALID_REQUEST",
      "disaggregated_params.first_gen_tokens",
      /768/,
    ],
  ])("completions %#: %o", (body, code, param, message) => {
    const error = refusal(() => completion(body));
    expect(error).toMatchObject({ code, status: 400, details: { param } });
    expect(error.message).toMatch(message);
  });

  test.each([
    [{ messages: [] }, "INVALID_REQUEST", "messages", /at least one/],
    [{ messages: [{ role: "tool", content: "x" }] }, "INVALID_REQUEST", "messages[0].role", /tool calls/],
    [{ messages: [{ role: "user", content: 5 }] }, "INVALID_REQUEST", "messages[0].content", /text/],
    [
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      "INVALID_REQUEST",
      "messages[0].content",
      /text/,
    ],
    [
      { messages: [{ role: "user", content: "x", tool_calls: [{}] }] },
      "UNSUPPORTED_PARAMETER",
      "messages[0].tool_calls",
      /./,
    ],
    [{ tools: [{}] }, "UNSUPPORTED_PARAMETER", "tools", /tool calls/],
    [{ tool_choice: "required" }, "UNSUPPORTED_PARAMETER", "tool_choice", /tool calls/],
    [{ store: true }, "UNSUPPORTED_PARAMETER", "store", /not stored/],
    [{ modalities: ["text", "audio"] }, "UNSUPPORTED_PARAMETER", "modalities", /text/],
    [{ max_tokens: 2, max_completion_tokens: 3 }, "INVALID_REQUEST", "max_tokens", /differs/],
    [{ top_logprobs: 2 }, "INVALID_REQUEST", "top_logprobs", /logprobs: true/],
    [{ prompt: "x" }, "UNKNOWN_PARAMETER", "prompt", /not a field/],
  ])("chat %#: %o", (body, code, param, message) => {
    const error = refusal(() => chat(body));
    expect(error).toMatchObject({ code, status: 400, details: { param } });
    expect(error.message).toMatch(message);
  });

  test("values that ask for nothing are accepted for unsupported fields", () => {
    completion({ n: 1, best_of: 1, suffix: null, response_format: { type: "text" }, use_beam_search: false });
    chat({
      tools: [],
      tool_choice: "none",
      store: false,
      modalities: ["text"],
      response_format: { type: "text" },
      audio: null,
    });
    const answer = { role: "assistant", content: null, refusal: null, annotations: [], tool_calls: null };
    chat({ messages: [{ role: "user", content: "a" }, answer, { role: "user", content: "b" }] });
  });
});

describe("any JSON", () => {
  const names = [...new Set([...fieldNotes(CompletionRequest).keys(), ...fieldNotes(ChatCompletionRequest).keys()])];
  const value = fc.oneof(
    fc.jsonValue({ maxDepth: 3 }),
    fc.constantFrom<unknown>(0, 1, -1, 2 ** 53, 1e300, "", "x", true, false, [], {}, [1], ["x"], 2n ** 63n),
    fc.constant([{ role: "user", content: "x" }]),
    fc.constant({ request_type: "context_only" }),
  );
  const body = fc.dictionary(
    fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...names) }, fc.constantFrom<string>("x", "__proto__", "")),
    value,
    {
      maxKeys: 8,
    },
  );

  test.each([
    ["completions", CompletionRequest, completion],
    ["chat", ChatCompletionRequest, chat],
  ] as const)("%s are accepted or refused with 400 and the name of a field, never anything else", (_, __, convert) => {
    let accepted = 0;
    fc.assert(
      fc.property(body, (fields) => {
        try {
          convert(fields);
          accepted++;
        } catch (error) {
          if (!(error instanceof KvError)) throw error;
          expect(error.status).toBe(400);
          const param = String(error.details.param);
          const field = /^[^.[]*/.exec(param)?.[0] ?? "";
          expect([...Object.keys(fields), ...names, '""']).toContain(field);
        }
      }),
      { numRuns: 3000 },
    );
    expect(accepted).toBeGreaterThan(0);
  });

  test("a router reads what it needs and passes the rest untouched", () => {
    const raw = { model: "m", prompt: "x", logit_bias: { "1": 2 }, novel: { deep: [1n] }, stream: null };
    expect(parseRequest(RoutedRequest, raw)).toEqual(raw);
    expect(refusal(() => parseRequest(RoutedRequest, { stream: "yes" }))).toMatchObject({
      details: { param: "stream" },
    });
    expect(refusal(() => parseRequest(RoutedRequest, { prompt: ["a", "b"] }))).toMatchObject({
      details: { param: "prompt" },
    });
  });

  const many = (count: number, text: string): string => Array(count).fill(text).join(",");
  test.each([
    ["stop strings", `{"prompt":"x","stop":[${many(4e6, "1")}]}`],
    [
      "first tokens",
      `{"prompt":"x","disaggregated_params":{"request_type":"context_only","first_gen_tokens":[${many(4e6, '""')}]}}`,
    ],
    ["biases", `{"prompt":"x","logit_bias":{${Array.from({ length: 3e5 }, (_, at) => `"${at}":1`).join(",")}}}`],
    ["unknown fields", `{"prompt":"x",${Array.from({ length: 3e5 }, (_, at) => `"k${at}":1`).join(",")}}`],
    ["unknown inner fields", `{"stream_options":{${Array.from({ length: 3e5 }, (_, at) => `"k${at}":1`).join(",")}}}`],
    ["bad messages", `{"messages":[${many(4000, `{"role":"bad","content":[${many(60, "{}")}]}`)}]}`],
    ["parts", `{"messages":[{"role":"user","content":[${many(4e5, "{}")}]}]}`],
    ["levels", `{"prompt":${"[".repeat(3e6)}${"]".repeat(3e6)}}`],
    ["levels in an unknown field", `{"messages":[{"role":"user","x":${"[".repeat(4e5)}${"]".repeat(4e5)}}]}`],
    ["objects", `{"metadata":[${many(2e6, "{}")}]}`],
  ])("megabytes of %s are refused before the limit", (_, text) => {
    const refuse = (): unknown => {
      const body = parseBody(text);
      return "messages" in body ? chat(body) : completion(body);
    };
    expect(refusal(refuse).status).toBe(400);
  });

  test("a router passes an object of many fields on", () => {
    const logit_bias = Object.fromEntries(Array.from({ length: 5000 }, (_, at) => [String(at), -100]));
    expect(parseRequest(RoutedRequest, { prompt: "x", logit_bias })).toEqual({ prompt: "x", logit_bias });
  });

  test("five million token ids are checked within 5 s", () => {
    const ids = Array.from({ length: 5_000_000 }, () => 5);
    completion({ prompt: ids });
  });
});

test("disaggregated_params of a context worker of trtllm-serve, nulls and all, are accepted", () => {
  expect(
    DisaggregatedParams.parse({
      request_type: "generation_only",
      first_gen_tokens: [1],
      ctx_request_id: 5,
      encoded_opaque_state: "x",
      draft_tokens: null,
      disagg_request_id: null,
      ctx_dp_rank: null,
      ctx_info_endpoint: null,
      schedule_style: 0,
    }),
  ).toMatchObject({ ctx_request_id: 5n });
});
