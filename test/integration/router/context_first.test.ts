import { describe, expect, it } from "vitest";
import { errorOf, routedPerTest } from "./routed.ts";
import {
  CTX_REQUEST_ID,
  contextReply,
  events,
  generationReply,
  ScriptedWorker,
  STATE,
  sendJson,
} from "./scripted_worker.ts";

const start = routedPerTest();

describe("the context-first flow", () => {
  it("prefills at the context worker, decodes at the generation worker, and answers with what that said", async () => {
    const { complete, ctx, gen } = await start();
    const response = await complete({ temperature: 0, vendor_field: { deep: [1, "x"] } }, undefined);
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toContain("application/json");
    expect(await response.text()).toBe(generationReply());
    expect(ctx.requests).toHaveLength(1);
    expect(ctx.requests[0]?.body).toMatchObject({
      prompt: "a b c",
      stream: false,
      temperature: 0,
      vendor_field: { deep: [1, "x"] },
    });
    expect(gen.requests).toHaveLength(1);
    expect(gen.requests[0]?.body).toMatchObject({
      prompt: [5, 6, 7],
      max_tokens: 2,
      vendor_field: { deep: [1, "x"] },
      disaggregated_params: {
        request_type: "generation_only",
        first_gen_tokens: [11],
        encoded_opaque_state: STATE,
        ctx_usage: { prompt_tokens_details: { cached_tokens: 2 } },
      },
    });
    expect(ctx.released).toEqual([]);
    expect(ctx.aborted).toEqual([]);
  });

  it("carries ctx_request_id 2^62+1 through both hops unchanged", async () => {
    const { complete, ctx, gen } = await start();
    ctx.context = (request) => sendJson(request, contextReply({ id: CTX_REQUEST_ID }));
    expect((await complete()).status).toBe(200);
    expect(gen.requests[0]?.text).toContain('"ctx_request_id":4611686018427387905');
  });

  it("sends a fresh 64-bit id for each request to workers that know ids, and none to those that don't", async () => {
    const { complete, ctx, gen } = await start();
    await Promise.all([complete(), complete(), complete()]);
    const ids = ctx.requests.map(({ text }) => /"disagg_request_id":(\d+)/.exec(text)?.[1]);
    expect(new Set(ids).size).toBe(3);
    for (const id of ids) expect(BigInt(id ?? 0)).toBeGreaterThan(2n ** 53n);
    expect(gen.requests.map(({ text }) => /"disagg_request_id":(\d+)/.exec(text)?.[1]).sort()).toEqual(ids.sort());
  });

  it("sends a trtllm-serve of before 1.3 nothing but request_type, and goes on after its `length`", async () => {
    const { complete, ctx, gen } = await start({
      prepare: ({ context, generation }) => {
        for (const worker of [...context, ...generation]) {
          worker.info = null;
          worker.clock = null;
        }
      },
    });
    ctx.context = (request) => sendJson(request, contextReply({ finish: "length" }));
    expect((await complete({ max_tokens: 1 })).status).toBe(200);
    expect(ctx.requests[0]?.body.disaggregated_params).toEqual({ request_type: "context_only" });
    expect(gen.requests[0]?.body.disaggregated_params).not.toHaveProperty("ctx_usage");
  });

  it("adds a chat's prompt ids beside its messages", async () => {
    const { post, gen } = await start();
    const messages = [{ role: "user", content: "hi" }];
    expect((await post("/v1/chat/completions", { model: "tiny", messages })).status).toBe(200);
    expect(gen.requests[0]?.path).toBe("/v1/chat/completions");
    expect(gen.requests[0]?.body).toMatchObject({ messages, prompt_token_ids: [5, 6, 7] });
  });

  it("gives both hops and the answer the client's request id, or one of its own", async () => {
    const { complete, ctx, gen } = await start();
    const given = await complete(
      {},
      { headers: { "content-type": "application/json", "x-request-id": "client-7", traceparent: "00-ab-cd-01" } },
    );
    expect(given.headers.get("x-request-id")).toBe("client-7");
    expect(ctx.requests[0]?.headers).toMatchObject({ "x-request-id": "client-7", traceparent: "00-ab-cd-01" });
    expect(gen.requests[0]?.headers["x-request-id"]).toBe("client-7");
    const own = await complete();
    expect(own.headers.get("x-request-id")).toBe(ctx.requests[1]?.headers["x-request-id"]);
    expect(own.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
  });

  it("never lets a client name somebody's KV, and never shows it where KV lies", async () => {
    const { complete, ctx, gen } = await start();
    gen.generation = (request) => sendJson(request, contextReply({ finish: "length" }));
    const response = await complete({
      disaggregated_params: { request_type: "generation_only", ctx_request_id: 5 },
      kv_transfer_params: { remote_host: "x" },
      bootstrap_host: "evil",
      prompt_token_ids: [9],
    });
    const text = await response.text();
    expect(text).toContain('" one"');
    expect(text).not.toMatch(/disaggregated_params|prompt_token_ids|b3BhcXVl/);
    expect(ctx.requests[0]?.text).not.toMatch(
      /kv_transfer_params|bootstrap_host|"prompt_token_ids"|"ctx_request_id":5/,
    );
  });

  it("serves one whole answer when the first token ended it: no generation hop, nothing of the hand-off", async () => {
    const { complete, ctx, gen } = await start();
    ctx.context = (request) =>
      sendJson(request, contextReply({ finish: "stop", params: '{"request_type":"context_only","ctx_request_id":7}' }));
    const body = await (await complete()).json();
    expect(body).toMatchObject({ choices: [{ text: " one", finish_reason: "stop" }], usage: { completion_tokens: 1 } });
    expect(JSON.stringify(body)).not.toMatch(/disaggregated_params|prompt_token_ids/);
    expect(gen.requests).toHaveLength(0);
  });

  it("streams an answer that its first token ended: the text, the end, the usage, [DONE]", async () => {
    const { complete, ctx } = await start();
    ctx.context = (request) => sendJson(request, contextReply({ finish: "length", params: '{"ctx_request_id":7}' }));
    const response = await complete({ stream: true, stream_options: { include_usage: true }, max_tokens: 1 });
    expect(response.headers.get("content-type")).toContain("text/event-stream");
    expect(response.headers.get("x-accel-buffering")).toBe("no");
    const data = (await response.text())
      .split("\n\n")
      .filter(Boolean)
      .map((event) => event.slice("data: ".length));
    expect(data.at(-1)).toBe("[DONE]");
    expect(data.slice(0, -1).map((text) => JSON.parse(text))).toMatchObject([
      { choices: [{ text: " one", finish_reason: null }] },
      { choices: [{ text: "", finish_reason: "length" }] },
      { choices: [], usage: { total_tokens: 4 } },
    ]);
  });

  it("reaches workers by IPv6 address", async ({ skip }) => {
    const worker = await new ScriptedWorker().listen(0, "::1").catch(() => skip("this host has no ::1"));
    const { complete } = await start({ context: [worker as ScriptedWorker] });
    expect((await complete()).status).toBe(200);
  });

  it("uses all workers of both roles in turn", async () => {
    const { complete, context, generation } = await start({ context: 2, generation: 2 });
    for (let i = 0; i < 4; i++) await (await complete()).text();
    for (const worker of [...context, ...generation]) expect(worker.requests).toHaveLength(2);
  });

  it("never pairs a worker of both roles with itself while there is another", async () => {
    const mixed = await Promise.all([1, 2].map(() => new ScriptedWorker().listen()));
    const { complete } = await start({ context: mixed, generation: mixed });
    for (let i = 0; i < 6; i++) await (await complete()).text();
    const hops = mixed.map((worker) => worker.requests.map(({ headers, hop }) => `${headers["x-request-id"]} ${hop}`));
    for (const worker of hops) expect(new Set(worker.map((text) => text.split(" ")[0])).size).toBe(worker.length);
    expect(hops.flat()).toHaveLength(12);
  });

  it("asks a lone worker of both roles once, without a hand-off", async () => {
    const mixed = [await new ScriptedWorker().listen()];
    const { complete } = await start({ context: mixed, generation: mixed });
    expect(await (await complete({ n: 2 })).text()).toBe(generationReply());
    expect(mixed[0]?.requests.map(({ hop }) => hop)).toEqual(["aggregated"]);
    expect(mixed[0]?.requests[0]?.body).not.toHaveProperty("disaggregated_params");
  });

  it("without context workers relays to the others as they are", async () => {
    const { complete, gen } = await start({ context: 0 });
    expect(await (await complete({ stream: true })).text()).toBe(events.join(""));
    expect(gen.requests[0]?.hop).toBe("aggregated");
  });

  it("refuses several answers to one prompt, which would need several hand-offs", async () => {
    const { complete } = await start();
    for (const fields of [{ n: 2 }, { best_of: 3 }]) {
      const response = await complete(fields);
      expect(response.status).toBe(400);
      expect(await errorOf(response)).toMatchObject({ code: "unsupported_parameter", param: Object.keys(fields)[0] });
    }
  });

  it("answers a model's other name once warned, and refuses it when it is strict or when there are several models", async () => {
    const lax = await start();
    for (let i = 0; i < 2; i++) expect((await lax.complete({ model: "gpt-x" })).status).toBe(200);
    expect(lax.log.filter(({ msg }) => msg.includes("another model"))).toHaveLength(1);
    const strict = await start({ settings: { strictModel: true } });
    const refused = await strict.complete({ model: "gpt-x" });
    expect(refused.status).toBe(404);
    expect(await errorOf(refused)).toMatchObject({ code: "model_not_found", message: expect.stringContaining("tiny") });
    const two = await start({
      context: 2,
      generation: 2,
      prepare: ({ context, generation }) => {
        for (const group of [context, generation]) (group[1] as ScriptedWorker).models = ["big"];
      },
    });
    expect((await two.complete({ model: "gpt-x" })).status).toBe(404);
    for (let i = 0; i < 3; i++) expect((await two.complete({ model: "big" })).status).toBe(200);
    expect(two.context.map(({ requests }) => requests.length)).toEqual([0, 3]);
    expect(two.generation.map(({ requests }) => requests.length)).toEqual([0, 3]);
  });
});
