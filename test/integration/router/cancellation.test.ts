import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import type { DeparturePhase } from "../../../src/worker/departures.ts";
import type { WorkerHooks } from "../../../src/worker/server.ts";
import { Gate } from "../transceiver/gated_plane.ts";
import { until } from "../waits.ts";
import { contextHop, post } from "../worker/client.ts";
import { holdsNothing } from "../worker/inspect.ts";
import { LeakWatch, POOL_TOKENS, poolWithoutReuse, type Watched } from "../worker/no_leak.ts";
import { tinyModel, Workers } from "../worker/worker_process.ts";
import { type Here, metric, startHere } from "./workers_here.ts";

/** Prefill takes several steps, decode goes on until somebody ends it. */
const LONG = {
  prompt: Array.from({ length: 1024 }, (_, index) => 5 + (index % 300)),
  max_tokens: 1000,
  ignore_eos: true,
  temperature: 0,
  stream: true,
};
const SHORT = { prompt: [5, 6, 7, 8], max_tokens: 4, ignore_eos: true, temperature: 0 };

type Side = "context" | "generation";
type Freed = readonly [side: Side, phase: DeparturePhase];

let here: Here;
const gate = new Gate();
/** What a test does in the step that it waits for. */
let act: { readonly at: string; readonly run: () => void } | undefined;
const freed: Freed[] = [];
let onFreed: () => void = () => {};

function reached(at: string): void {
  if (act?.at !== at) return;
  const { run } = act;
  act = undefined;
  run();
}

const hooksOf = (side: Side): WorkerHooks => ({
  onChange: ({ to }) => reached(`${side} ${to}`),
  onStep: () => reached(`${side} step`),
  onFreed: (phase) => {
    freed.push([side, phase]);
    onFreed();
  },
});

const { kvCache } = defaultWorkerSettings(tinyModel);
const pool = { kvCache: { ...kvCache, enableBlockReuse: false, maxTokens: POOL_TOKENS } };
let leaks: LeakWatch;
let watched: readonly [context: Watched, generation: Watched];

beforeAll(async () => {
  gate.onHeld = () => reached("read held");
  here = await startHere({
    context: {
      // One at a time, so that the second one waits; in many small steps, so that a client can leave between two of them.
      settings: { ...pool, maxBatchSize: 1, maxNumTokens: 32, enableChunkedPrefill: true },
      hooks: hooksOf("context"),
    },
    generation: { settings: pool, hooks: { ...hooksOf("generation"), transceiver: { plane: gate.around } } },
  });
  // Both run in this process: what one of them keeps, the process keeps.
  const watch = ({ url }: { readonly url: string }): Watched => ({ url, child: process, log: () => "" });
  watched = [watch(here.context), watch(here.generation)];
  leaks = await LeakWatch.begin([watched[0]], [watched[1]]);
});
afterAll(() => here[Symbol.asyncDispose]());
beforeEach(() => {
  act = undefined;
  freed.length = 0;
  gate.open();
});

const firstFreed = (): Promise<void> =>
  new Promise((resolve) => {
    onFreed = resolve;
    if (freed.length > 0) resolve();
  });

async function expectNothingHeld(): Promise<void> {
  for (const worker of [here.context, here.generation]) {
    await until("nothing is held", () => holdsNothing(worker));
  }
}

/** Runs a request through the router and ends it by `leave` when `at` is reached. */
async function leaveAt(at: string, leave: (client: AbortController) => void): Promise<void> {
  const client = new AbortController();
  act = { at, run: () => leave(client) };
  await post(here.router.url, "/v1/completions", LONG, { id: "leaver", signal: client.signal }).catch(() => {});
  expect(act).toBeUndefined();
}

const disconnect = (client: AbortController): void => client.abort();
const abortAt = (side: Side) => () =>
  void post(here[side].url, "/kv/abort", { request_id: "leaver" }).catch((error: unknown) =>
    expect.fail(String(error)),
  );

describe("a request that nobody wants any more frees its blocks", () => {
  it("in the queue of the context worker", async () => {
    const first = new AbortController();
    const occupied = post(here.context.url, "/v1/completions", LONG, { signal: first.signal }).catch(() => {});
    await until(
      "the first one decodes",
      async () => (await metric(here.context, 'kvt_worker_requests{state="decoding"}')) === 1,
    );
    const client = new AbortController();
    const answer = post(here.router.url, "/v1/completions", LONG, { signal: client.signal }).catch(() => {});
    await until(
      "the second one waits",
      async () => (await metric(here.context, 'kvt_worker_requests{state="waiting"}')) === 1,
    );
    client.abort();
    await answer;
    await firstFreed();
    expect(freed).toEqual([["context", "queued"]]);
    first.abort();
    await occupied;
    await expectNothingHeld();
  });

  it.each<[at: string, side: Side, phase: DeparturePhase]>([
    ["context step", "context", "prefill"],
    ["generation GENERATION_IN_PROGRESS", "generation", "decode"],
  ])("when the client disconnects at %s", async (at, side, phase) => {
    await leaveAt(at, disconnect);
    await firstFreed();
    expect(freed).toContainEqual([side, phase]);
    await expectNothingHeld();
  });

  it("when the client disconnects in the step in which its KV is offered, however far the router has gone by then", async () => {
    await leaveAt("context DISAGG_CONTEXT_TRANS_IN_PROGRESS", disconnect);
    await firstFreed();
    expect(freed[0]?.[1]).toMatch(/offered|granted|receiving|decode/);
    await expectNothingHeld();
  });

  it("when the client disconnects while its KV is read: the context worker hears of it and does not wait for the lease", async () => {
    gate.close();
    await leaveAt("read held", disconnect);
    await expectNothingHeld();
    expect(freed).toContainEqual(["generation", "receiving"]);
  });

  it.each<[at: string, side: Side, phase: DeparturePhase]>([
    ["context step", "context", "prefill"],
    ["read held", "generation", "receiving"],
    ["generation GENERATION_IN_PROGRESS", "generation", "decode"],
  ])("when it is aborted by its id at %s", async (at, side, phase) => {
    if (at === "read held") gate.close();
    await leaveAt(at, abortAt(side));
    await firstFreed();
    expect(freed).toContainEqual([side, phase]);
    await expectNothingHeld();
  });

  it("when the router's time is over while the KV is read", async () => {
    gate.close();
    await using slow = await startHere({
      generation: { hooks: { transceiver: { plane: gate.around } } },
      router: { requestTimeoutMs: 300 },
    });
    const answer = await post(slow.router.url, "/v1/completions", SHORT).catch((error: unknown) => error);
    expect(answer).toMatchObject({ status: 504, code: "request_timeout" });
    for (const worker of [slow.context, slow.generation]) {
      await until("nothing is held", () => holdsNothing(worker));
    }
  });
});

describe("a router's retry", () => {
  it("after its hand-off has died computes the prompt again, and both hand-offs' blocks are free afterwards", async () => {
    gate.close();
    let prefills = 0;
    act = {
      at: "read held",
      run: () => {
        // The offer ends under the receiver's hands.
        abortAt("context")();
        gate.onHeld = () => {
          prefills++;
          gate.open();
        };
      },
    };
    const reply = JSON.parse(await post(here.router.url, "/v1/completions", SHORT, { id: "leaver" }));
    gate.onHeld = () => reached("read held");
    expect(reply.usage.completion_tokens).toBe(4);
    expect(prefills).toBe(1);
    expect(freed).toContainEqual(["context", "granted"]);
    await expectNothingHeld();
  });
});

describe("what /kv/release and /kv/abort answer", () => {
  const release = (params: string, side: Side = "context") => {
    const state = /"encoded_opaque_state":"([^"]+)"/.exec(params)?.[1] ?? "";
    return post(here[side].url, "/kv/release", { encoded_opaque_state: state }).then(
      (text) => JSON.parse(text).outcome,
      (error: { code: string }) => error.code,
    );
  };
  const abort = (id: string) =>
    post(here.context.url, "/kv/abort", { request_id: id }).then(
      (text) => JSON.parse(text).outcome,
      (error: { code: string }) => error.code,
    );

  it("is cancelled for an offer that nobody reads, and already_complete afterwards", async () => {
    const hop = await contextHop(here.context.url, "completion", SHORT);
    expect(await release(hop.params, "generation")).toBe("no_offer");
    expect(await release(hop.params)).toBe("cancelled");
    expect(freed).toEqual([["context", "offered"]]);
    expect(await release(hop.params)).toBe("already_complete");
    await contextHop(here.context.url, "completion", SHORT, { id: "mine" });
    expect(await abort("mine")).toBe("cancelled");
    expect(await abort("mine")).toBe("already_complete");
    expect(await abort("nobody's")).toBe("request_not_found");
    await expectNothingHeld();
  });

  it("is in_flight for one that is being read, which then ends on the receiver's word", async () => {
    gate.close();
    const hop = await contextHop(here.context.url, "completion", SHORT);
    const held = new Promise<void>((resolve) => {
      act = { at: "read held", run: resolve };
    });
    const { prompt: _prompt, ...rest } = SHORT;
    const sent = `${JSON.stringify(rest).slice(0, -1)},"prompt":${hop.promptTokenIds},"disaggregated_params":${hop.params}}`;
    const answer = post(here.generation.url, "/v1/completions", sent).catch((error: unknown) => error);
    await held;
    expect(await release(hop.params)).toBe("in_flight");
    expect(await answer).toMatchObject({ code: "sender_aborted" });
    await firstFreed();
    expect(freed).toEqual([["context", "granted"]]);
    await expectNothingHeld();
  });
});

it("all these leave nothing behind: every block is served, to a fresh worker too, and descriptors, maps and memory are as before", async () => {
  await using workers = new Workers(here.socketDir);
  await leaks.expectNone(watched, await workers.start(poolWithoutReuse));
});

it("offers that nobody fetches are bounded in number: a context request above the limit is 429 with Retry-After, others are served", async () => {
  await using full = await startHere({
    context: { settings: { transfer: { ...defaultWorkerSettings(tinyModel).transfer, maxOffers: 2 } } },
  });
  const states = await Promise.all([1, 2].map(() => contextHop(full.context.url, "completion", SHORT)));
  const refused = await fetch(`${full.context.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...SHORT, disaggregated_params: { request_type: "context_only" } }),
  });
  expect(refused.status).toBe(429);
  expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
  expect(await refused.json()).toMatchObject({ error: { code: "offers_full" } });
  await post(full.context.url, "/v1/completions", SHORT);
  const state = /"encoded_opaque_state":"([^"]+)"/.exec(states[0]?.params ?? "")?.[1];
  await post(full.context.url, "/kv/release", { encoded_opaque_state: state });
  await post(full.router.url, "/v1/completions", SHORT);
});
