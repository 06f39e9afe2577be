import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { KvError } from "../../../src/errors.ts";
import {
  answerId,
  chatChunk,
  chatLogprobs,
  chatResponse,
  completionChunk,
  completionLogprobs,
  completionResponse,
  errorBody,
  errorEvent,
  parseBody,
  SSE_DONE,
  SseParser,
  sseEvent,
  stringifyBody,
  usage,
  usageChunk,
} from "../../../src/openai/index.ts";

const head = { id: answerId("completion", "r-1"), created: 1_764_000_000, model: "tiny" };
const place = { requestId: "r-1" };

describe("error bodies", () => {
  test("carry code, field, request id and place of a KvError", () => {
    const error = new KvError("INVALID_REQUEST", { param: "n", why: "too many" });
    expect(errorBody(error, { requestId: "r-1", hop: "context", worker: "127.0.0.1:8001" })).toEqual({
      status: 400,
      headers: { "x-request-id": "r-1" },
      body: {
        error: {
          message: "`n`: too many; correct the field; docs/openai.md lists them all",
          type: "invalid_request_error",
          code: "invalid_request",
          param: "n",
          request_id: "r-1",
          hop: "context",
          worker: "127.0.0.1:8001",
        },
      },
    });
  });

  test.each([
    [new KvError("MODEL_NOT_FOUND", { model: "x", served: "tiny" }), 404, "not_found_error", "model_not_found"],
    [new KvError("UNAUTHORIZED", { what: "POST /kv/abort" }), 401, "authentication_error", "unauthorized"],
    [new KvError("BAD_TOKEN", { peer: "p", request: "r" }), 403, "permission_error", "bad_token"],
    [new KvError("TRANSFER_TIMEOUT", { transfer: "t", ms: 5 }), 504, "server_error", "transfer_timeout"],
    [
      Object.assign(new Error("too large"), { statusCode: 413, code: "FST_ERR_X" }),
      413,
      "invalid_request_error",
      "fst_err_x",
    ],
    [z.strictObject({ a: z.string() }).safeParse({ a: 1 }).error, 400, "invalid_request_error", "invalid_request"],
  ])("%#: the status and type follow from what was thrown", (error, status, type, code) => {
    const answer = errorBody(error, place);
    expect(answer.status).toBe(status);
    expect(answer.body.error).toMatchObject({ type, code, request_id: "r-1" });
  });

  test.each([
    new Error("secret path /root"),
    "text",
    undefined,
    null,
    7,
    Object.assign(new Error("x"), { statusCode: 503 }),
  ])("what is no refusal of ours is a 500 that tells nothing: %s", (error) => {
    const answer = errorBody(error, place);
    expect(answer.status).toBe(500);
    expect(answer.body.error.code).toBe("internal");
    expect(JSON.stringify(answer)).not.toMatch(/secret/);
  });

  test("429 and 503 say when to come back", () => {
    expect(errorBody(new KvError("OUT_OF_BLOCKS", { wanted: 1, free: 0, total: 1 }), place).headers).toMatchObject({
      "retry-after": "1",
    });
    expect(errorBody(new KvError("QUEUE_TIMEOUT", { transfer: "t", ms: 1 }), place).headers).toHaveProperty(
      "retry-after",
    );
    expect(errorBody(new KvError("NO_OFFER", { peer: "p", request: "r" }), place).headers).not.toHaveProperty(
      "retry-after",
    );
  });

  test("messages are cut at 2048 characters", () => {
    const answer = errorBody(new KvError("SENDER_ABORTED", { transfer: "t", why: "x".repeat(5000) }), place);
    expect(answer.body.error.message).toHaveLength(2048);
  });

  test("inside a stream the error is one event", () => {
    const events = new SseParser().push(Buffer.from(errorEvent(new Error("x"), place)));
    expect(events.map((event) => parseBody(event))).toEqual([{ ...errorBody(new Error("x"), place).body }]);
  });
});

describe("answers", () => {
  const ending = { finishReason: "length", stopReason: null } as const;

  test("a context reply carries its params and prompt ids, exact through the wire", () => {
    const params = { request_type: "context_only", ctx_request_id: 2n ** 62n + 1n, first_gen_tokens: [5] } as const;
    const context = { params: { ...params, first_gen_tokens: [5] }, promptTokenIds: [1, 2, 3] };
    const reply = completionResponse(head, { text: "a", ending, usage: usage(3, 1, 2), context });
    const back = parseBody(stringifyBody({ ...reply }));
    expect(back).toEqual({
      id: "cmpl-r-1",
      created: head.created,
      model: "tiny",
      object: "text_completion",
      choices: [
        {
          index: 0,
          text: "a",
          logprobs: null,
          finish_reason: "length",
          stop_reason: null,
          disaggregated_params: params,
        },
      ],
      usage: { prompt_tokens: 3, completion_tokens: 1, total_tokens: 4, prompt_tokens_details: { cached_tokens: 2 } },
      prompt_token_ids: [1, 2, 3],
    });
    const chat = chatResponse(
      { ...head, id: answerId("chat", "r") },
      { text: "a", ending, usage: usage(3, 1, 0), context },
    );
    expect(parseBody(stringifyBody({ ...chat }))).toMatchObject({
      id: "chatcmpl-r",
      object: "chat.completion",
      choices: [{ message: { role: "assistant", content: "a", refusal: null }, disaggregated_params: params }],
      prompt_token_ids: [1, 2, 3],
    });
  });

  test("an ordinary answer has neither", () => {
    const reply = completionResponse(head, { text: "a", ending, usage: usage(1, 1, 0) });
    expect(reply).not.toHaveProperty("prompt_token_ids");
    expect(reply.choices[0]).not.toHaveProperty("disaggregated_params");
  });

  test("chunks: role and content first, null usage while one is to come, a last one without choices", () => {
    const first = chatChunk(head, { text: "" }, { includeUsage: true, first: true });
    expect(first.choices[0]?.delta).toEqual({ role: "assistant", content: "" });
    expect(first.usage).toBeNull();
    const last = chatChunk(
      head,
      { text: "", ending: { finishReason: "stop", stopReason: "END" } },
      { includeUsage: false, first: false },
    );
    expect(last.choices[0]).toMatchObject({ delta: {}, finish_reason: "stop", stop_reason: "END" });
    expect(last).not.toHaveProperty("usage");
    expect(completionChunk(head, { text: "x" }, false).choices[0]).toMatchObject({ text: "x", finish_reason: null });
    expect(usageChunk("chat", head, usage(1, 2, 0))).toMatchObject({
      object: "chat.completion.chunk",
      choices: [],
      usage: { total_tokens: 3 },
    });
    expect(usageChunk("completion", head, usage(1, 2, 0))).toMatchObject({ object: "text_completion", choices: [] });
  });
});

describe("log probabilities", () => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  const smile = bytes("\u{1F600}");
  const tokens = [
    {
      bytes: bytes("Hi"),
      logprob: -0.25,
      top: [
        { bytes: bytes("Hi"), logprob: -0.25 },
        { bytes: bytes("Ho"), logprob: -2 },
      ],
    },
    {
      bytes: smile.subarray(0, 2),
      logprob: -1,
      top: [{ bytes: smile.subarray(0, 2), logprob: Number.NEGATIVE_INFINITY }],
    },
    { bytes: smile.subarray(2), logprob: -1, top: [] },
    { bytes: bytes("!"), logprob: -1, top: [] },
  ];

  test("completions: texts, offsets, alternatives; half characters as bytes", () => {
    expect(completionLogprobs(tokens, 2, 10)).toEqual({
      tokens: ["Hi", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "!"],
      token_logprobs: [-0.25, -1, -1, -1],
      top_logprobs: [{ Hi: -0.25, Ho: -2 }, { "bytes:\\xf0\\x9f": -9999 }, {}, {}],
      text_offset: [10, 12, 12, 14],
    });
    expect(completionLogprobs(tokens, 0, 0).top_logprobs).toBeNull();
  });

  test("a skipped special token moves no offset", () => {
    const hidden = { bytes: bytes("<|im_start|>"), logprob: -1, hidden: true, top: [] };
    expect(completionLogprobs([hidden, ...tokens.slice(0, 1), hidden, ...tokens.slice(3)], 0, 0).text_offset).toEqual([
      0, 0, 2, 2,
    ]);
  });

  test("a token after one that stayed half a character begins behind its replacement", () => {
    const half = { bytes: smile.subarray(0, 2), logprob: -1, top: [] };
    expect(completionLogprobs([half, ...tokens.slice(3)], 0, 0).text_offset).toEqual([0, 1]);
  });

  test("chat: token, bytes and as many alternatives as asked for", () => {
    expect(chatLogprobs(tokens.slice(0, 2), 1).content).toEqual([
      {
        token: "Hi",
        logprob: -0.25,
        bytes: [72, 105],
        top_logprobs: [{ token: "Hi", logprob: -0.25, bytes: [72, 105] }],
      },
      {
        token: "bytes:\\xf0\\x9f",
        logprob: -1,
        bytes: [0xf0, 0x9f],
        top_logprobs: [{ token: "bytes:\\xf0\\x9f", logprob: -9999, bytes: [0xf0, 0x9f] }],
      },
    ]);
  });
});

describe("event streams", () => {
  test("what was written is read back, cut anywhere, with any line ends and comments between", () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: "binary" })),
        fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1 }),
        fc.constantFrom("\n", "\r\n", "\r"),
        (texts, sizes, lineEnd) => {
          const stream = `${texts.map((text) => `: beat\n\n${sseEvent({ text })}`).join("")}${SSE_DONE}`;
          const bytes = Buffer.from(stream.replaceAll("\n", lineEnd));
          const parser = new SseParser();
          const events: string[] = [];
          for (let at = 0, next = 0; at < bytes.length; next++) {
            const size = sizes[next % sizes.length] ?? 1;
            events.push(...parser.push(bytes.subarray(at, at + size)));
            at += size;
          }
          // A lone carriage return at the very end is only complete with what follows.
          if (lineEnd === "\r") events.push(...parser.push(Buffer.from("\r")));
          expect(events.pop()).toBe("[DONE]");
          expect(events.map((event) => (JSON.parse(event) as { text: string }).text)).toEqual(texts);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("data of several lines is one event, other fields are skipped", () => {
    expect(new SseParser().push(Buffer.from("event: x\nid: 1\ndata: a\ndata:b\n\ndata\n\n"))).toEqual(["a\nb"]);
  });

  test("a line without end is refused at 16 Mi characters instead of growing", () => {
    const parser = new SseParser();
    const piece = Buffer.alloc(1 << 20, 0x61);
    expect(() => {
      for (let count = 0; count < 20; count++) parser.push(piece);
    }).toThrow(RangeError);
  });
});
