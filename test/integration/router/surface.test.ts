import { once } from "node:events";
import { connect } from "node:net";
import { describe, expect, it } from "vitest";
import { packageVersion } from "../../../src/version.ts";
import { errorOf, routedPerTest } from "./routed.ts";
import type { Received } from "./scripted_worker.ts";

const start = routedPerTest();

describe("the router's own routes", () => {
  it("give version, models, perf records and metrics", async () => {
    const { router, complete } = await start();
    const get = async (path: string): Promise<unknown> => (await fetch(`${router.url}${path}`)).json();
    expect(await get("/version")).toEqual({ version: packageVersion() });
    expect(await get("/v1/models")).toEqual({ object: "list", data: [{ id: "tiny", object: "model" }] });
    expect(await get("/perf_metrics")).toEqual([]);
    await (await complete({ stream: true })).text();
    await (await complete({ prompt: 7 })).text();
    for (const path of ["/metrics", "/prometheus/metrics"]) {
      const text = await (await fetch(`${router.url}${path}`)).text();
      for (const line of [
        "total_requests 2",
        "stream_requests 1",
        "total_responses 1",
        "validation_exceptions 1",
        "ctx_total_requests 1",
        "ctx_completed_requests 1",
        "gen_completed_requests 1",
        "gen_first_token_latency_seconds_count 1",
        'kvt_router_answers{status="200"} 1',
        'kvt_router_answers{status="400"} 1',
      ]) {
        expect(text).toContain(`\n${line}\n`);
      }
    }
  });

  it("are the only ones: anything else is 404, /v1/responses with a hint", async () => {
    const { post, router } = await start();
    const hinted = await post("/v1/responses", {});
    expect(hinted.status).toBe(404);
    expect(await errorOf(hinted)).toMatchObject({
      code: "route_not_found",
      message: expect.stringContaining("/v1/chat/completions"),
    });
    expect((await fetch(`${router.url}/nowhere`)).status).toBe(404);
    expect((await fetch(`${router.url}/v1/completions`)).status).toBe(404);
  });

  it("give every answer a request id, errors too", async () => {
    const { router } = await start();
    for (const path of ["/health", "/metrics", "/nowhere"]) {
      const headers = { "x-request-id": "given" };
      expect((await fetch(`${router.url}${path}`, { headers })).headers.get("x-request-id")).toBe("given");
    }
  });
});

describe("a bad body", () => {
  it.each([
    ["broken JSON", '{"prompt": "a"', {}, 400, "bad_json"],
    ["no UTF-8", Buffer.from([0x7b, 0xff, 0x7d]), {}, 400, "bad_json"],
    ["nothing", "", {}, 400, "bad_json"],
    ["an array", "[]", {}, 400, "bad_json"],
    ["several prompts", '{"prompt":["a","b"]}', {}, 400, "invalid_request"],
    ["a template", '{"prompt":"a","chat_template":"x"}', {}, 400, "unsupported_parameter"],
    [
      "another type",
      "prompt=a",
      { "content-type": "application/x-www-form-urlencoded" },
      415,
      "unsupported_media_type",
    ],
    ["text", '{"prompt":"a"}', { "content-type": "text/plain" }, 415, "unsupported_media_type"],
  ])("of %s is answered in the shape of every error", async (_what, body, headers, status, code) => {
    const { router, ctx } = await start();
    const response = await fetch(`${router.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body,
    });
    expect(response.status).toBe(status);
    expect(await errorOf(response)).toMatchObject({
      code,
      message: expect.any(String),
      type: "invalid_request_error",
      request_id: response.headers.get("x-request-id"),
    });
    expect(ctx.requests).toHaveLength(0);
  });

  it("of 65 MB is 413, announced or not, and the router goes on", async () => {
    const { router, complete } = await start();
    const body = Buffer.alloc(65 << 20, " ");
    const headers = { "content-type": "application/json" };
    const send = (init: RequestInit) => fetch(`${router.url}/v1/completions`, { method: "POST", headers, ...init });
    // A client that is still writing may see its connection closed instead of the answer: the status is what counts if there is one.
    const chunked = new ReadableStream({
      start(controller) {
        for (let at = 0; at < body.length; at += 1 << 20) controller.enqueue(body.subarray(at, at + (1 << 20)));
        controller.close();
      },
    });
    for (const init of [{ body }, { body: chunked, duplex: "half" as const }]) {
      const response = await send(init);
      expect(response.status).toBe(413);
      expect(await errorOf(response)).toMatchObject({ code: "body_too_large" });
    }
    expect((await complete()).status).toBe(200);
  });

  it("that never comes is 408", async () => {
    const { router } = await start({ settings: { requestTimeoutMs: 700 } });
    const socket = connect(router.port, "127.0.0.1");
    socket.write(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    );
    let text = "";
    socket.on("data", (data) => {
      text += data;
    });
    await once(socket, "close");
    expect(text).toMatch(/^HTTP\/1\.1 408 /);
    expect(text).toContain('"code":"body_timeout"');
  });

  it("in broken HTTP is 400", async () => {
    const { router } = await start();
    const socket = connect(router.port, "127.0.0.1");
    socket.write("NONSENSE\r\n\r\n");
    let text = "";
    socket.on("data", (data) => {
      text += data;
    });
    await once(socket, "close");
    expect(text).toMatch(/^HTTP\/1\.1 400 /);
    expect(text).toContain('"code":"invalid_request"');
  });
});

describe("a big prompt", () => {
  it("of 10 MB goes through both hops", async () => {
    const { complete, ctx } = await start();
    const prompt = "\u00e4 b\n".repeat(2 << 20);
    expect((await complete({ prompt })).status).toBe(200);
    expect((ctx.requests[0]?.body as { prompt?: string } | undefined)?.prompt).toBe(prompt);
  });
});

describe("admission", () => {
  it("answers 429 with Retry-After above the limit of requests, before it reads the body, and takes the next one later", async () => {
    const { complete, ctx } = await start({
      hooks: { admission: { requests: 2 }, probe: { intervalMs: 50, timeoutMs: 500 } },
    });
    const held: Received[] = [];
    const answer = ctx.context;
    ctx.context = (received) => void held.push(received);
    const first = [complete(), complete()];
    await ctx.until(() => held.length === 2);
    const refused = await complete();
    expect(refused.status).toBe(429);
    expect(refused.headers.get("retry-after")).toBe("1");
    expect(await errorOf(refused)).toMatchObject({ code: "too_many_requests", type: "rate_limit_error" });
    for (const received of held) void answer(received);
    expect((await Promise.all(first)).map(({ status }) => status)).toEqual([200, 200]);
    ctx.context = answer;
    expect((await complete()).status).toBe(200);
  });

  it("bounds the bytes of bodies in flight", async () => {
    const { complete, ctx } = await start({
      hooks: { admission: { bodyBytes: 1000 }, probe: { intervalMs: 50, timeoutMs: 500 } },
    });
    let held: Received | undefined;
    ctx.context = (received) => {
      held = received;
    };
    const leave = new AbortController();
    const big = complete({ prompt: "x".repeat(900) }, { signal: leave.signal });
    await ctx.until(() => held !== undefined);
    expect((await complete({ prompt: "x".repeat(900) })).status).toBe(429);
    leave.abort();
    await expect(big).rejects.toThrow();
  });
});
