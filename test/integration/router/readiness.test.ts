import { once } from "node:events";
import { createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { eventually } from "../waits.ts";
import { errorOf, route, routedPerTest } from "./routed.ts";
import { type Received, ScriptedWorker, sendJson } from "./scripted_worker.ts";

const start = routedPerTest();

interface WorkerInfo {
  readonly worker_id: string;
  readonly state: string;
  readonly reason: string;
  readonly [field: string]: unknown;
}
interface ClusterInfo {
  readonly is_ready: boolean;
  readonly current_workers: { readonly context_servers: WorkerInfo[]; readonly generation_servers: WorkerInfo[] };
  readonly server_lists: { readonly context: string[]; readonly generation: string[] };
}
const clusterInfo = async (url: string): Promise<ClusterInfo> =>
  (await (await fetch(`${url}/cluster_info`)).json()) as ClusterInfo;

describe("start-up", () => {
  it("listens at once and answers 503 with Retry-After until the last worker is healthy", async () => {
    const { router, complete, ctx, gen } = await start({
      waitReady: false,
      prepare: ({ generation }) => {
        (generation[0] as ScriptedWorker).health = 503;
      },
    });
    await eventually(
      () => clusterInfo(router.url),
      ({ server_lists: { context } }) => context.length === 1,
    );
    const early = await complete();
    expect(early.status).toBe(503);
    expect(early.headers.get("retry-after")).toBe("1");
    expect(await errorOf(early)).toMatchObject({
      code: "cluster_not_ready",
      message: expect.stringContaining(gen.address.url),
    });
    const health = await fetch(`${router.url}/health`);
    expect(health.status).toBe(503);
    expect((await fetch(`${router.url}/health/live`)).status).toBe(200);
    expect(ctx.requests).toHaveLength(0);
    gen.health = 200;
    await router.ready;
    expect((await complete()).status).toBe(200);
    expect((await fetch(`${router.url}/health`)).status).toBe(200);
  });

  it("that takes too long rejects with the missing workers and why each is missing", async () => {
    const { router, ctx, gen } = await start({
      waitReady: false,
      settings: { serverStartTimeoutMs: 400 },
      prepare: ({ generation }) => {
        (generation[0] as ScriptedWorker).health = 503;
      },
    });
    await expect(router.ready).rejects.toMatchObject({
      code: "START_TIMEOUT",
      message: expect.stringContaining(`generation ${gen.address.url} (GET /health answered 503: wedged)`),
    });
    await expect(router.ready).rejects.not.toMatchObject({ message: expect.stringContaining(ctx.address.url) });
  });

  it("counts a worker only when its /server_info was read and its clock offset was exchanged", async () => {
    const { router, ctx } = await start({
      prepare: ({ context }) => {
        (context[0] as ScriptedWorker).clock = { receive_ts: 1e6, transmit_ts: 1e6 };
      },
    });
    expect(ctx.offsets).toHaveLength(1);
    const offset = (1e6 - performance.now() / 1000) * -1;
    expect(ctx.offsets[0]).toBeCloseTo(offset, -1);
    const info = (await clusterInfo(router.url)).current_workers.context_servers[0];
    expect(info).toMatchObject({
      worker_id: ctx.address.url,
      host: "127.0.0.1",
      port: ctx.port,
      role: 0,
      state: "ready",
      engine: "reference",
      kvt_protocol: 1,
    });
    expect(-(info?.clock_offset_s as number)).toBeCloseTo(ctx.offsets[0] ?? 0);
  });

  it("repeats the clock offset", async () => {
    const { ctx } = await start({ hooks: { probe: { intervalMs: 20, clockOffsetMs: 0, timeoutMs: 500 } } });
    await ctx.until(() => ctx.offsets.length >= 3);
  });

  it("refuses a worker of another contract version and says both", async () => {
    const { router } = await start({
      waitReady: false,
      prepare: ({ context }) => {
        (context[0] as ScriptedWorker).info = { kvt_protocol: 99 };
      },
    });
    const { current_workers } = await eventually(
      () => clusterInfo(router.url),
      ({ current_workers: { context_servers } }) => context_servers[0]?.state === "refused",
    );
    expect(current_workers.context_servers[0]?.reason).toBe("it speaks kvt_protocol 99, this router 1");
  });

  it("on a port that is taken fails at once", async () => {
    const squatter = createServer().listen(0, "127.0.0.1");
    await once(squatter, "listening");
    const address = squatter.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    await expect(route({ settings: { port } })).rejects.toMatchObject({ code: "BIND_FAILED" });
    squatter.close();
  });
});

describe("a listed worker", () => {
  it("that dies is taken out, and comes back on the same port without a restart of the router", async () => {
    const { router, complete, context } = await start({ context: 2 });
    const victim = context[0] as ScriptedWorker;
    const stateOf = async () => (await clusterInfo(router.url)).current_workers.context_servers[0];
    await victim.die();
    await eventually(stateOf, (info) => info?.state === "down");
    for (let i = 0; i < 3; i++) expect((await complete()).status).toBe(200);
    expect(victim.requests).toHaveLength(0);
    const again = await new ScriptedWorker().listen(victim.port);
    context.push(again);
    await eventually(stateOf, (info) => info?.state === "ready");
    await (await complete()).text();
    await (await complete()).text();
    expect(again.requests).toHaveLength(1);
    expect(again.offsets).toHaveLength(1);
  });

  it("that says it is not healthy gets no requests until it is again", async () => {
    const { router, complete, generation } = await start({ generation: 2 });
    const [sick, well] = generation as [ScriptedWorker, ScriptedWorker];
    sick.health = 503;
    await eventually(
      () => clusterInfo(router.url),
      ({ server_lists: lists }) => lists.generation.length === 1,
    );
    for (let i = 0; i < 3; i++) await (await complete()).text();
    expect([sick.requests.length, well.requests.length]).toEqual([0, 3]);
    sick.health = 200;
    await eventually(
      () => clusterInfo(router.url),
      ({ server_lists: lists }) => lists.generation.length === 2,
    );
  });

  it("that stops answering is taken out after two probes, and what waits for it goes to the other one", async () => {
    const { router, complete, context, log } = await start({
      context: 2,
      hooks: { probe: { intervalMs: 20, timeoutMs: 150 } },
    });
    const [stopped, well] = context as [ScriptedWorker, ScriptedWorker];
    stopped.context = () => {
      stopped.health = "hang";
    };
    const response = await complete();
    expect(response.status).toBe(200);
    expect([stopped.requests.length, well.requests.length]).toEqual([1, 1]);
    expect((await clusterInfo(router.url)).current_workers.context_servers[0]?.reason).toContain(
      "no answer within 150 ms",
    );
    expect(log.some(({ msg }) => msg === "worker is out of use")).toBe(true);
  });

  it("that was the last of its role makes the router answer 503", async () => {
    const { router, complete, gen } = await start();
    await gen.die();
    await eventually(
      () => fetch(`${router.url}/health`),
      ({ status }) => status === 503,
    );
    const response = await complete();
    expect(response.status).toBe(503);
    expect(await errorOf(response)).toMatchObject({
      message: expect.stringContaining("no generation worker is ready"),
    });
  });
});

describe("the end", () => {
  it("waits for what is in flight, refuses the rest with 503, then lets go of everything", async () => {
    const { router, complete, ctx } = await start();
    let held: Received | undefined;
    ctx.context = (received) => {
      held = received;
    };
    const slow = complete();
    await ctx.until(() => held !== undefined);
    const drained = router.drained();
    const late = await complete();
    expect(late.status).toBe(503);
    expect(await errorOf(late)).toMatchObject({ code: "draining" });
    expect((await fetch(`${router.url}/health`)).status).toBe(503);
    sendJson(held as Received, '{"choices":[{"finish_reason":"stop","text":"x"}]}');
    expect((await slow).status).toBe(200);
    await drained;
    await router.close();
    await expect(fetch(router.url)).rejects.toThrow();
  });

  it("ends requests that take longer than it may", async () => {
    const { router, complete, ctx } = await start();
    ctx.context = () => undefined;
    const slow = complete();
    await ctx.until(() => ctx.requests.length > 0);
    await router.close({ drainMs: 0 });
    const response = await slow;
    expect(response.status).toBe(503);
    expect(await errorOf(response)).toMatchObject({ code: "closed" });
  });
});
