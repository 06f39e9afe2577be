import { describe, expect, it } from "vitest";
import { requestIdOf } from "../../../src/openai/http_front.ts";
import { parseBody } from "../../../src/openai/index.ts";
import { clockOffsetS } from "../../../src/router/clock_offset.ts";
import { readContextReply, withoutRouterFields } from "../../../src/router/context_reply.ts";
import { firstTokenEvents } from "../../../src/router/finish_answer.ts";
import { HopFailure, wordsOf } from "../../../src/router/hop_failure.ts";
import { readClientBody } from "../../../src/router/routed_call.ts";
import type { UpstreamWorker } from "../../../src/router/upstream_worker.ts";
import { contextBody, generationBody } from "../../../src/router/upstreams/context_first.ts";

const BIG = 2n ** 62n + 1n;
const bytes = (text: string): Buffer => Buffer.from(text);
const answer = (body: string, status = 200, headers = {}) => ({ status, headers, body: bytes(body), streamed: false });
const kvt = { url: "localhost:8001", isKvt: true, preparation: { info: { offer_ms: 1000 } } } as UpstreamWorker;
const trtllm = { url: "localhost:8002", isKvt: false } as UpstreamWorker;

const reply = (fields: { finish?: string; params?: string; top?: string; choices?: string } = {}): string => {
  const params =
    fields.params ?? `{"request_type":"context_only","ctx_request_id":${BIG},"encoded_opaque_state":"c3RhdGU="}`;
  const choice = `{"index":0,"text":" a","finish_reason":"${fields.finish ?? "not_finished"}","disaggregated_params":${params}}`;
  return `{"id":"cmpl-1","choices":${fields.choices ?? `[${choice}]`},"usage":{"prompt_tokens":3}${fields.top ?? ',"prompt_token_ids":[5,6,7]'}}`;
};
const read = (worker: UpstreamWorker, text: string, disaggRequestId?: bigint) =>
  readContextReply(worker, answer(text), { disaggRequestId, nowMs: 100 });
const failure = (worker: UpstreamWorker, text: string, disaggRequestId?: bigint): HopFailure => {
  try {
    read(worker, text, disaggRequestId);
  } catch (error) {
    if (error instanceof HopFailure) return error;
    throw error;
  }
  throw new Error("the reply was taken");
};

describe("bodies of the hops", () => {
  const { body } = readClientBody(
    bytes(
      '{"model":"m","prompt":"hi","stream":true,"stream_options":{"include_usage":true},"top_k":3,"seed":9007199254740993}',
    ),
    { kind: "completion", allowChatTemplate: false },
  );

  it("ask the context worker for one answer that is no stream, with the id only when one is given", () => {
    const text = contextBody(body, BIG);
    expect(text).toContain(`"disagg_request_id":${BIG}`);
    expect(text).toContain('"seed":9007199254740993');
    expect(parseBody(text)).toMatchObject({ prompt: "hi", stream: false, top_k: 3 });
    expect(parseBody(text)).not.toHaveProperty("stream_options");
    expect(parseBody(contextBody(body, undefined)).disaggregated_params).toEqual({ request_type: "context_only" });
  });

  it("give the generation worker the reply's params with the type replaced, the ids as prompt, and the client's stream", () => {
    const outcome = read(kvt, reply());
    if (outcome.kind !== "handoff") throw new Error("no hand-off");
    const text = generationBody({ body, kind: "completion" }, outcome.handoff, kvt);
    expect(text).toContain(`"ctx_request_id":${BIG}`);
    expect(parseBody(text)).toMatchObject({
      prompt: [5, 6, 7],
      stream: true,
      stream_options: { include_usage: true },
      disaggregated_params: {
        request_type: "generation_only",
        encoded_opaque_state: "c3RhdGU=",
        ctx_usage: { prompt_tokens: 3 },
      },
    });
  });

  it("leave a chat's messages and add the ids beside them; a worker of another make gets no field of ours", () => {
    const outcome = read(trtllm, reply({ finish: "length", top: ',"prompt_token_ids":[[5,6]]' }));
    if (outcome.kind !== "handoff") throw new Error("no hand-off");
    const chat = { messages: [{ role: "user", content: "x" }] };
    const sent = parseBody(generationBody({ body: chat, kind: "chat" }, outcome.handoff, trtllm));
    expect(sent).toMatchObject({ messages: chat.messages, prompt_token_ids: [5, 6] });
    expect(sent.disaggregated_params).not.toHaveProperty("ctx_usage");
  });
});

describe("a context reply", () => {
  it("is a hand-off that expires a little before the worker lets go of it", () => {
    const outcome = read(kvt, reply());
    expect(outcome).toMatchObject({ kind: "handoff", handoff: { ctxRequestId: BIG, expiresMs: 1050 } });
  });

  it("is the final answer when the first token ended it, with the routers' fields taken out", () => {
    const outcome = read(trtllm, reply({ finish: "stop" }));
    expect(outcome.kind).toBe("final");
    expect(JSON.stringify(outcome)).not.toMatch(/disaggregated_params|prompt_token_ids/);
  });

  it("with finish_reason length goes on at workers of trtllm-serve and is final at ours", () => {
    expect(read(trtllm, reply({ finish: "length" })).kind).toBe("handoff");
    expect(read(kvt, reply({ finish: "length", params: '{"request_type":"context_only"}' })).kind).toBe("final");
  });

  it.each([
    [
      "several choices",
      reply({ choices: '[{"finish_reason":"length"},{"finish_reason":"length"}]' }),
      "exactly one choice",
    ],
    ["no choice", reply({ choices: "[]" }), "exactly one choice"],
    ["no params", reply({ params: "null" }), "disaggregated_params is missing"],
    ["no id", reply({ params: '{"encoded_opaque_state":"x"}' }), "ctx_request_id is missing"],
    ["no state from one of ours", reply({ params: '{"ctx_request_id":1}' }), "encoded_opaque_state is missing"],
    ["no JSON", "<html>502 from some proxy</html>", "<html>502 from some proxy</html>"],
    ["no object", "[1]", "not an object"],
  ])("with %s is refused, naming the worker and its text", (_what, text, why) => {
    const { error, verdict } = failure(kvt, text);
    expect(error.code).toBe("WORKER_NONSENSE");
    expect(error.status).toBe(502);
    expect(error.message).toContain("localhost:8001");
    expect(error.message).toContain(why);
    expect(verdict).toBe("retry");
  });

  it("that does not give back the id that was sent is refused", () => {
    expect(failure(trtllm, reply(), 5n).error.message).toContain("disagg_request_id is missing");
  });
});

describe("the client's body", () => {
  const take = (text: string, kind: "completion" | "chat" = "completion") =>
    readClientBody(bytes(text), { kind, allowChatTemplate: false });

  it("loses every field by which routers talk to workers, and nothing else", () => {
    const { body } = take(
      '{"prompt":"x","disaggregated_params":{"ctx_request_id":1},"kv_transfer_params":{},"bootstrap_host":"h","bootstrap_room":1,"prompt_token_ids":[1],"vendor_field":7}',
    );
    expect(body).toEqual({ prompt: "x", vendor_field: 7 });
  });

  it.each([
    ['{"prompt":["a","b"]}', "INVALID_REQUEST", "prompt"],
    ['{"prompt":[[1,2]]}', "INVALID_REQUEST", "prompt"],
    ["{}", "INVALID_REQUEST", "prompt"],
    ['{"prompt":"a","stream":"yes"}', "INVALID_REQUEST", "stream"],
    ["[]", "BAD_JSON", undefined],
    ['{"prompt":"a"', "BAD_JSON", undefined],
    ["", "BAD_JSON", undefined],
  ])("%s is refused with 400 naming the field", (text, code, param) => {
    expect(() => take(text)).toThrow(expect.objectContaining({ code, status: 400 }));
    if (param) expect(() => take(text)).toThrow(new RegExp(`\`${param}`));
  });

  it("of a chat needs messages, and may bring no template unless the router allows it", () => {
    expect(() => take('{"prompt":"x"}', "chat")).toThrow(/messages/);
    const templated = '{"messages":[],"chat_template":"{{x}}"}';
    expect(() => take(templated, "chat")).toThrow(expect.objectContaining({ code: "UNSUPPORTED_PARAMETER" }));
    expect(readClientBody(bytes(templated), { kind: "chat", allowChatTemplate: true }).body).toHaveProperty(
      "chat_template",
    );
  });
});

describe("an answer that ended at its first token, streamed", () => {
  const data = (events: string[]) => events.slice(0, -1).map((event) => JSON.parse(event.slice("data: ".length)));

  it("is one chunk with the text, one with the end, the usage that was asked for, and [DONE]", () => {
    const events = firstTokenEvents(
      { id: "r", kind: "completion", request: { stream: true, stream_options: { include_usage: true } } },
      {
        id: "cmpl-9",
        created: 5,
        model: "m",
        choices: [{ index: 0, text: " yes", finish_reason: "stop", stop_reason: "x" }],
        usage: { total_tokens: 4 },
      },
    );
    expect(events.at(-1)).toBe("data: [DONE]\n\n");
    expect(data(events)).toMatchObject([
      { id: "cmpl-9", created: 5, choices: [{ text: " yes", finish_reason: null }], usage: null },
      { choices: [{ text: "", finish_reason: "stop", stop_reason: "x" }], usage: null },
      { choices: [], usage: { total_tokens: 4 } },
    ]);
  });

  it("of a chat begins with the role, and has no usage that was not asked for", () => {
    const events = firstTokenEvents(
      { id: "r", kind: "chat", request: { stream: true } },
      {
        choices: [{ message: { role: "assistant", content: "Hi" }, finish_reason: "stop" }],
        usage: { total_tokens: 4 },
      },
    );
    expect(data(events)).toMatchObject([
      { object: "chat.completion.chunk", choices: [{ delta: { role: "assistant", content: "Hi" } }] },
      { choices: [{ delta: {}, finish_reason: "stop" }] },
    ]);
    expect(events).toHaveLength(3);
  });
});

describe("what a worker said", () => {
  it.each([
    ['{"error":{"message":"m","type":"t","code":"c","param":"p"}}', { message: "m", type: "t", code: "c", param: "p" }],
    [
      '{"object":"error","message":"m","type":"BadRequestError","param":null,"code":400}',
      { message: "m", code: undefined },
    ],
    ['{"detail":"Not Found"}', { message: "Not Found" }],
    ["Internal Server Error", { message: "Internal Server Error" }],
    ["", { message: "(no text)" }],
  ])("is read out of %s", (text, words) => {
    expect(wordsOf(answer(text, 500))).toMatchObject(words);
  });

  it("is cut at 2048 characters", () => {
    expect(wordsOf(answer("x".repeat(5000), 500)).message).toHaveLength(2048);
  });
});

it("fields of routers are taken out of choices and top level only", () => {
  const clean = withoutRouterFields({
    prompt_token_ids: [1],
    choices: [{ index: 0, disaggregated_params: null, text: '"prompt_token_ids"' }],
  });
  expect(clean).toEqual({ choices: [{ index: 0, text: '"prompt_token_ids"' }] });
});

it("the clock offset cancels an equal way there and back", () => {
  // The worker is 100 s ahead, the way takes 2 s each, its work 1 s.
  const stamps = { sentS: 10, receivedAtWorkerS: 112, answeredByWorkerS: 113, arrivedS: 15 };
  expect(clockOffsetS(stamps)).toBeCloseTo(100);
});

it("a request id of the client is kept when it fits a header and a log line, else replaced", () => {
  expect(requestIdOf({ headers: { "x-request-id": "abc-1" } })).toBe("abc-1");
  for (const bad of ["", "a b", "x".repeat(129), "caf\u00e9"]) {
    expect(requestIdOf({ headers: { "x-request-id": bad } })).toMatch(/^[0-9a-f-]{36}$/);
  }
});
