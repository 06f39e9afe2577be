import { afterEach, describe, expect, it } from "vitest";
import { errorOf, type Routed, type RoutedOptions, route } from "./routed.ts";
import { beginStream, events, generationReply, type Received, ScriptedWorker, sendJson } from "./scripted_worker.ts";

const ENDPOINT = "tcp://127.0.0.1:7001?epoch=0123456789abcdef";

let routed: Routed | undefined;
afterEach(async () => {
  await routed?.[Symbol.asyncDispose]();
  routed = undefined;
});
const start = async (options: RoutedOptions = {}) => {
  routed = await route({
    prepare: ({ context }) => {
      for (const worker of context) {
        worker.info = { ...worker.info, disaggregated_params: { ctx_dp_rank: null, ctx_info_endpoint: [ENDPOINT] } };
      }
    },
    ...options,
    settings: { scheduleStyle: "generation_first", ...options.settings },
  });
  return { ...routed, ctx: routed.context[0] as ScriptedWorker, gen: routed.generation[0] as ScriptedWorker };
};
const refuse =
  (status: number, code: string) =>
  (received: Received): void =>
    sendJson(received, JSON.stringify({ error: { message: `says ${code}`, type: "some_error", code } }), status);
const reset = (received: Received): void => void received.response.socket?.resetAndDestroy();
const counts = (workers: readonly ScriptedWorker[]): number[] => workers.map(({ requests }) => requests.length);
const idOf = (received: Received | undefined): string | undefined =>
  /"disagg_request_id":(\d+)/.exec(received?.text ?? "")?.[1];
const hang = (): void => undefined;

describe("the generation-first flow", () => {
  it("asks both workers at once, with one id, and the generation worker where to fetch", async () => {
    const { complete, ctx, gen } = await start();
    const answer = ctx.context;
    // Would wait for ever if the generation worker were asked after the context worker's answer.
    ctx.context = async (received) => {
      await gen.until(() => gen.requests.length > 0);
      answer(received);
    };
    const response = await complete({ temperature: 0, vendor_field: { deep: [1, "x"] }, stream_options: null });
    expect(response.status).toBe(200);
    expect(await response.text()).toBe(generationReply());
    expect(ctx.requests[0]?.body).toMatchObject({
      prompt: "a b c",
      stream: false,
      vendor_field: { deep: [1, "x"] },
      disaggregated_params: { request_type: "context_only", schedule_style: 1 },
    });
    expect(gen.requests[0]?.body).toMatchObject({
      prompt: "a b c",
      max_tokens: 2,
      disaggregated_params: {
        request_type: "generation_only",
        schedule_style: 1,
        ctx_dp_rank: null,
        ctx_info_endpoint: [ENDPOINT],
      },
    });
    expect(gen.requests[0]?.body.disaggregated_params).not.toHaveProperty("first_gen_tokens");
    const id = idOf(ctx.requests[0]);
    expect(BigInt(id ?? 0)).toBeGreaterThan(2n ** 53n);
    expect(idOf(gen.requests[0])).toBe(id);
    expect(gen.requests[0]?.text).toContain(`"ctx_request_id":${id}`);
    expect(ctx.requests[0]?.headers["x-request-id"]).toBe(gen.requests[0]?.headers["x-request-id"]);
    expect([ctx.released, ctx.aborted]).toEqual([[], []]);
  });

  it("streams the generation worker's bytes, also when the context worker's reply comes after them", async () => {
    const { complete, ctx, gen } = await start();
    const answer = ctx.context;
    let finished: Promise<unknown> | undefined;
    ctx.context = async (received) => {
      await gen.until(() => gen.requests.length > 0);
      await finished;
      answer(received);
    };
    const whole = complete({ stream: true }).then((response) => response.text());
    finished = whole;
    expect(await whole).toBe(events.join(""));
    expect(ctx.aborted).toEqual([]);
  });

  it("lets a stream that runs go on when the context worker dies", async () => {
    const { complete, ctx, gen } = await start();
    ctx.context = hang;
    gen.generation = async (received) => {
      const response = beginStream(received);
      response.write(events[0]);
      await ctx.die();
      for (const event of events.slice(1)) response.write(event);
      response.end();
    };
    expect(await (await complete({ stream: true })).text()).toBe(events.join(""));
  });

  it("uses no context worker that does not say where to fetch from", async () => {
    const silent = await new ScriptedWorker().listen();
    const { router } = await start({ context: [silent], waitReady: false, prepare: () => undefined });
    router.ready.catch(() => undefined);
    await expect
      .poll(async () => JSON.stringify(await (await fetch(`${router.url}/cluster_info`)).json()))
      .toContain("has no disaggregated_params.ctx_info_endpoint");
    expect((await fetch(`${router.url}/health`)).status).toBe(503);
  });

  it("runs on one worker when that is all there is", async () => {
    const mixed = await new ScriptedWorker().listen();
    const { complete } = await start({
      context: [mixed],
      generation: [mixed],
      prepare: () => undefined,
      waitReady: false,
    });
    mixed.info = { ...mixed.info, disaggregated_params: { ctx_info_endpoint: ENDPOINT } };
    await routed?.router.ready;
    expect(await (await complete()).text()).toBe(generationReply());
    expect(mixed.requests.map(({ hop }) => hop)).toEqual(["aggregated"]);
  });
});

describe("a context worker that fails in generation-first", () => {
  it.each([
    ["dies before it answers", reset],
    ["answers 500", refuse(500, "internal")],
    ["answers nonsense", (received: Received) => sendJson(received, '{"choices":[]}')],
    ["is full", refuse(429, "queue_full")],
  ])("and %s ends the generation worker's request, and both are tried again with a fresh id", async (_how, script) => {
    const { complete, context, gen } = await start({ context: 2 });
    const [bad] = context as [ScriptedWorker];
    const answer = gen.generation;
    let abandoned: Promise<void> | undefined;
    gen.generation = (received) => {
      if (gen.requests.length > 1) return answer(received);
      abandoned = received.abandoned;
      return undefined;
    };
    bad.context = async (received) => {
      await gen.until(() => gen.requests.length > 0);
      script(received);
    };
    expect(await (await complete()).text()).toBe(generationReply());
    await abandoned;
    expect(counts(context)).toEqual([1, 1]);
    expect(idOf(gen.requests[0])).toBe(idOf(context[0]?.requests[0]));
    expect(idOf(gen.requests[1])).toBe(idOf(context[1]?.requests[0]));
    expect(idOf(gen.requests[1])).not.toBe(idOf(gen.requests[0]));
  });

  it("because the request is wrong is not asked again: its words and status go to the client", async () => {
    const { complete, ctx, gen } = await start();
    const requests = () => [ctx.requests.length, gen.requests.length];
    gen.generation = hang;
    ctx.context = refuse(413, "prompt_too_long");
    const response = await complete();
    expect(response.status).toBe(413);
    expect(await errorOf(response)).toMatchObject({ code: "prompt_too_long", hop: "context", worker: ctx.address.url });
    expect(requests()).toEqual([1, 1]);
    expect(ctx.aborted).toEqual([]);
  });
});

describe("a generation worker that fails in generation-first", () => {
  it.each([
    ["dies", reset],
    ["answers 500", refuse(500, "internal")],
    ["is full", refuse(429, "queue_full")],
  ])("and %s ends the prefill that nobody needs, and another pair is tried", async (_how, script) => {
    const { complete, ctx, generation } = await start({ generation: 2 });
    const answer = ctx.context;
    let abandoned: Promise<void> | undefined;
    ctx.context = (received) => {
      if (ctx.requests.length > 1) return answer(received);
      abandoned = received.abandoned;
      return undefined;
    };
    (generation[0] as ScriptedWorker).generation = async (received) => {
      await ctx.until(() => ctx.requests.length > 0);
      script(received);
    };
    expect(await (await complete()).text()).toBe(generationReply());
    await abandoned;
    expect(counts(generation)).toEqual([1, 1]);
    await ctx.until(() => ctx.aborted.length > 0);
    expect(idOf(ctx.requests[1])).toBe(idOf(generation[1]?.requests[0]));
  });

  it("after the context worker has answered gives its KV back", async () => {
    const { complete, ctx, gen } = await start({ settings: { maxRetries: 0 } });
    let answered: Promise<unknown> = Promise.resolve();
    const answer = ctx.context;
    ctx.context = (received) => {
      answered = new Promise((resolve) => received.response.on("close", resolve));
      answer(received);
    };
    gen.generation = async (received) => {
      await ctx.until(() => ctx.requests.length > 0);
      await answered;
      // The reply is read by the router before anything that comes later on another socket is judged.
      await fetch(`${routed?.router.url}/health/live`);
      reset(received);
    };
    expect((await complete({}, { headers: { "content-type": "application/json" } })).status).toBe(502);
    await ctx.until(() => ctx.released.length + ctx.aborted.length > 0);
  });

  it("because the KV did not come is served by another context worker", async () => {
    const { complete, context, gen } = await start({ context: 2 });
    const answer = gen.generation;
    gen.generation = (received) => (gen.requests.length === 1 ? refuse(503, "peer_lost")(received) : answer(received));
    expect(await (await complete()).text()).toBe(generationReply());
    expect(counts(context)).toEqual([1, 1]);
  });

  it("for the same reason every time is not asked for ever", async () => {
    const { complete, gen } = await start({ context: 2, settings: { maxRetries: 2 } });
    gen.generation = refuse(503, "peer_lost");
    expect((await complete()).status).toBe(503);
    expect(gen.requests).toHaveLength(3);
  });

  it("after its first byte ends the stream with one error event", async () => {
    const { complete, gen } = await start();
    gen.generation = (received) => {
      const response = beginStream(received);
      response.write(events[0], () => response.socket?.resetAndDestroy());
    };
    const text = await (await complete({ stream: true })).text();
    expect(text.startsWith(events[0] as string)).toBe(true);
    expect(text).toContain("worker_lost");
    expect(text).not.toContain("[DONE]");
    expect(gen.requests).toHaveLength(1);
  });
});

describe("a client that leaves in generation-first", () => {
  it("ends both hops, and the context worker is told", async () => {
    const { complete, ctx, gen, log } = await start();
    const abandoned: Promise<void>[] = [];
    ctx.context = (received) => void abandoned.push(received.abandoned);
    gen.generation = (received) => void abandoned.push(received.abandoned);
    const leave = new AbortController();
    const asked = complete({}, { signal: leave.signal }).catch(() => undefined);
    await Promise.all([ctx, gen].map((worker) => worker.until(() => worker.requests.length > 0)));
    leave.abort();
    await asked;
    await Promise.all(abandoned);
    await ctx.until(() => ctx.aborted.length > 0);
    await expect.poll(() => log.find((line) => line.event === "request")).toMatchObject({ status: 499 });
  });

  it("gets 504 when neither worker answers in time, and both are let go", async () => {
    const { complete, ctx, gen } = await start({ settings: { requestTimeoutMs: 300 } });
    const abandoned: Promise<void>[] = [];
    ctx.context = (received) => void abandoned.push(received.abandoned);
    gen.generation = (received) => void abandoned.push(received.abandoned);
    const response = await complete({ stream: true });
    expect(response.status).toBe(504);
    await Promise.all(abandoned);
    expect(abandoned).toHaveLength(2);
    await ctx.until(() => ctx.aborted.length > 0);
  });
});
