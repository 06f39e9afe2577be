import { describe, expect, it } from "vitest";
import { errorOf, routedPerTest } from "./routed.ts";
import {
  beginStream,
  contextReply,
  events,
  generationReply,
  type Received,
  type ScriptedWorker,
  sendJson,
} from "./scripted_worker.ts";

const start = routedPerTest();
const refuse =
  (status: number, code: string, headers: Record<string, string> = {}) =>
  (received: Received): void =>
    sendJson(
      received,
      JSON.stringify({ error: { message: `says ${code}`, type: "some_error", code, param: "temperature" } }),
      status,
      headers,
    );
const reset = (received: Received): void => void received.response.socket?.resetAndDestroy();
const counts = (workers: readonly ScriptedWorker[]): number[] => workers.map(({ requests }) => requests.length);

const JSON_BODY = { "content-type": "application/json" };

describe("a context worker that fails", () => {
  it.each([
    ["dies before it answers", reset],
    ["answers 500", refuse(500, "internal")],
    ["answers nonsense", (received: Received) => sendJson(received, '{"choices":[]}')],
    ["is full", refuse(429, "out_of_blocks")],
    ["drains", refuse(503, "draining")],
  ])("and %s is replaced by the other one", async (_how, script) => {
    const { complete, context } = await start({ context: 2 });
    (context[0] as ScriptedWorker).context = script;
    const response = await complete();
    expect(await response.text()).toBe(generationReply());
    expect(counts(context)).toEqual([1, 1]);
  });

  it.each([
    ["dies before it answers", reset, 502, "worker_lost"],
    ["answers 500", refuse(500, "internal"), 502, "worker_failed"],
    ["answers nonsense", (received: Received) => sendJson(received, '{"choices":[]}'), 502, "worker_nonsense"],
    [
      "answers something that is no HTTP",
      (received: Received) => received.response.socket?.end("SSH-2.0\r\n"),
      502,
      "worker_nonsense",
    ],
    ["drains", refuse(503, "draining"), 503, "draining"],
    ["ran out of time", refuse(504, "transfer_timeout"), 504, "transfer_timeout"],
  ])("and %s, with no other to try, is named in the answer", async (_how, script, status, code) => {
    const { complete, ctx } = await start();
    ctx.context = script as (received: Received) => void;
    const response = await complete();
    expect(response.status).toBe(status);
    const error = await errorOf(response);
    expect(error).toMatchObject({
      code,
      hop: "context",
      worker: ctx.address.url,
      request_id: response.headers.get("x-request-id"),
    });
    if (status === 503) expect(response.headers.get("retry-after")).toBe("1");
    // The one worker is asked again (max_retries 1): it is the only one there is.
    expect(ctx.requests).toHaveLength(2);
  });

  it("tells what the worker said when its reply can't be used", async () => {
    const { complete, ctx } = await start();
    ctx.context = (received) => sendJson(received, '{"object":"error","message":"CUDA out of memory","code":500}');
    expect(await errorOf(await complete())).toMatchObject({ message: expect.stringContaining("CUDA out of memory") });
  });

  it("because the request is wrong is not asked again: its words and status go to the client", async () => {
    for (const status of [400, 413]) {
      const { complete, context } = await start({ context: 2 });
      for (const worker of context) worker.context = refuse(status, "invalid_request");
      const response = await complete();
      expect(response.status).toBe(status);
      expect(await errorOf(response)).toMatchObject({
        message: "says invalid_request",
        type: "some_error",
        code: "invalid_request",
        param: "temperature",
        hop: "context",
      });
      expect(counts(context).sort()).toEqual([0, 1]);
    }
  });

  it("because all are full answers 429 with the worker's Retry-After, and asks nobody twice", async () => {
    const { complete, context } = await start({ context: 2, settings: { maxRetries: 5 } });
    for (const worker of context) worker.context = refuse(429, "out_of_blocks", { "retry-after": "7" });
    const response = await complete();
    expect(response.status).toBe(429);
    expect(response.headers.get("retry-after")).toBe("7");
    expect(counts(context)).toEqual([1, 1]);
  });

  it("is not tried again with max_retries 0", async () => {
    const { complete, context } = await start({ context: 2, settings: { maxRetries: 0 } });
    for (const worker of context) worker.context = reset;
    expect((await complete()).status).toBe(502);
    expect(counts(context).sort()).toEqual([0, 1]);
  });

  it("may hold KV that nobody knows of, so it is told to abort when its reply was lost or makes no sense", async () => {
    const { complete, ctx } = await start({ settings: { maxRetries: 0 } });
    ctx.context = (received) => sendJson(received, contextReply({ params: "null" }));
    const response = await complete();
    await ctx.until(() => ctx.aborted.length > 0);
    expect(ctx.aborted).toEqual([response.headers.get("x-request-id")]);
  });

  it.each([
    ["that it aborts", 200, { aborted: 1 }, "done"],
    ["that it ran no such request", 404, { error: { code: "request_not_found" } }, "done"],
    ["404 as one that does not know the route", 404, { error: { code: "route_not_found" } }, "refused"],
    ["404 as a proxy does", 404, { detail: "Not Found" }, "refused"],
  ])("that says to an abort %s (%i, %j) counts as %s", async (_how, status, body, outcome) => {
    const { complete, ctx, router, log } = await start({ settings: { maxRetries: 0 } });
    ctx.abortAnswer = { status, body };
    ctx.context = reset;
    await complete();
    await ctx.until(() => ctx.aborted.length > 0);
    await router.close();
    const complaints = log.filter(({ msg }) => msg === "worker refused to let go");
    expect(complaints.map(({ status: said }) => said)).toEqual(outcome === "done" ? [] : [status]);
  });

  it("gets the next try only when the abort of the lost one has been answered, since both carry the same request id", async () => {
    const { complete, ctx } = await start({ hooks: { pause: () => Promise.resolve() } });
    const answer = ctx.context;
    ctx.context = (received) => (ctx.requests.length === 1 ? reset(received) : answer(received));
    const ids = () => ctx.requests.map(({ headers }) => headers["x-request-id"]);
    let idsAtAbort: unknown[] = [];
    ctx.beforeAborted = async () => {
      // Whoever comes later is served meanwhile, so the next try would have been, too.
      for (const id of ["later-1", "later-2"]) await complete({}, { headers: { ...JSON_BODY, "x-request-id": id } });
      idsAtAbort = ids();
    };
    expect((await complete({}, { headers: { ...JSON_BODY, "x-request-id": "lost" } })).status).toBe(200);
    expect(idsAtAbort).toEqual(["lost", "later-1", "later-2"]);
    expect(ids()).toEqual(["lost", "later-1", "later-2", "lost"]);
  });

  it("gets a fresh id with each try", async () => {
    const { complete, ctx } = await start();
    ctx.context = refuse(500, "internal");
    await complete();
    const ids = ctx.requests.map(({ text }) => /"disagg_request_id":(\d+)/.exec(text)?.[1]);
    expect(new Set(ids).size).toBe(2);
  });
});

describe("a generation worker that fails", () => {
  it.each([
    ["dies", reset],
    ["answers 500", refuse(500, "internal")],
    ["answers 200 without an answer", (received: Received) => sendJson(received, '"disaggregated_params"')],
    ["is full", refuse(429, "out_of_blocks")],
    ["drains", refuse(503, "draining")],
  ])("and %s is replaced by the other one, with the same KV", async (_how, script) => {
    const { complete, ctx, generation } = await start({ generation: 2 });
    (generation[0] as ScriptedWorker).generation = script;
    expect(await (await complete()).text()).toBe(generationReply());
    expect(counts(generation)).toEqual([1, 1]);
    expect(ctx.requests).toHaveLength(1);
    expect(generation[1]?.requests[0]?.text).toBe(generation[0]?.requests[0]?.text);
    expect(ctx.released).toEqual([]);
  });

  it("by an empty stream is replaced by the other one", async () => {
    const { complete, generation } = await start({ generation: 2 });
    (generation[0] as ScriptedWorker).generation = (received) => void beginStream(received).end();
    expect(await (await complete({ stream: true })).text()).toBe(events.join(""));
  });

  it("with no other left answers 502 and gives the KV back", async () => {
    const { complete, ctx, gen } = await start({ settings: { maxRetries: 0 } });
    gen.generation = reset;
    const response = await complete();
    expect(response.status).toBe(502);
    expect(await errorOf(response)).toMatchObject({ code: "worker_lost", hop: "generation", worker: gen.address.url });
    await ctx.until(() => ctx.released.length > 0);
    expect(ctx.released[0]).toContain(`"encoded_opaque_state":"b3BhcXVl"`);
  });

  it.each(["no_offer", "busy", "peer_lost", "stale_epoch", "lease_expired"])(
    "because the KV is gone (%s) makes the router prefill again, at another context worker",
    async (code) => {
      const { complete, context, gen } = await start({ context: 2 });
      let tries = 0;
      const answer = gen.generation;
      gen.generation = (received) => {
        tries += 1;
        return tries === 1 ? refuse(code === "no_offer" ? 404 : 503, code)(received) : answer(received);
      };
      expect(await (await complete()).text()).toBe(generationReply());
      expect(counts(context)).toEqual([1, 1]);
      const first = context[0] as ScriptedWorker;
      await first.until(() => first.released.length > 0);
    },
  );

  it("for the same reason every time is not asked for ever", async () => {
    const { complete, context, gen } = await start({ context: 2, settings: { maxRetries: 2 } });
    gen.generation = refuse(503, "peer_lost");
    expect((await complete()).status).toBe(503);
    expect(gen.requests).toHaveLength(3);
    expect(counts(context).reduce((sum, count) => sum + count)).toBe(3);
  });

  it.each([
    [404, "no_offer"],
    [403, "bad_token"],
    [401, "unauthorized"],
    [499, "cancelled"],
  ])("with %i (%s), which is not about the client, is 502 with the worker's words", async (status, code) => {
    const { complete, gen } = await start({ settings: { maxRetries: 0 } });
    gen.generation = refuse(status, code);
    const response = await complete();
    expect(response.status).toBe(502);
    expect(await errorOf(response)).toMatchObject({
      code: "worker_failed",
      message: expect.stringContaining(`says ${code}`),
    });
  });

  it("because the request is wrong is not asked again, and the KV is given back", async () => {
    const { complete, ctx, gen } = await start();
    gen.generation = refuse(400, "bad_state");
    const response = await complete();
    expect(response.status).toBe(400);
    expect(gen.requests).toHaveLength(1);
    await ctx.until(() => ctx.released.length > 0);
  });

  it("is never given KV whose offer has expired: the prompt is computed again", async () => {
    const clock = { ms: 0 };
    const { complete, ctx, generation } = await start({
      generation: 2,
      settings: { maxRetries: 1 },
      hooks: { probe: { intervalMs: 50, timeoutMs: 500 }, clock: { nowMs: () => clock.ms } },
      prepare: ({ context }) => {
        (context[0] as ScriptedWorker).info = { kvt_protocol: 1, offer_ms: 1_000 };
      },
    });
    (generation[0] as ScriptedWorker).generation = (received) => {
      clock.ms += 951;
      refuse(503, "draining")(received);
    };
    expect(await (await complete()).text()).toBe(generationReply());
    expect(ctx.requests).toHaveLength(2);
    await ctx.until(() => ctx.released.length > 0);
    expect(ctx.released).toHaveLength(1);
  });
});

describe("time", () => {
  it("without a first byte ends in 504, aborts the worker's request and frees what it holds", async () => {
    const { complete, ctx } = await start({ settings: { requestTimeoutMs: 300 } });
    let abandoned: Promise<void> | undefined;
    ctx.context = (received) => {
      abandoned = received.abandoned;
    };
    const response = await complete();
    expect(response.status).toBe(504);
    expect(await errorOf(response)).toMatchObject({ code: "request_timeout" });
    await abandoned;
    await ctx.until(() => ctx.aborted.length > 0);
  });

  it("at the generation worker ends in 504 and gives the KV back", async () => {
    const { complete, ctx, gen } = await start({ settings: { requestTimeoutMs: 300 } });
    gen.generation = () => undefined;
    expect((await complete({ stream: true })).status).toBe(504);
    await ctx.until(() => ctx.released.length > 0);
  });
});

describe("a worker that keeps failing", () => {
  it("gets no requests any more after five failures, while the other one serves", async () => {
    const { complete, context } = await start({ context: 2 });
    (context[0] as ScriptedWorker).context = refuse(500, "internal");
    for (let i = 0; i < 14; i++) expect((await complete()).status).toBe(200);
    expect(context[0]?.requests).toHaveLength(5);
  });
});
