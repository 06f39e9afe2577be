import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { errorOf, type Routed, type RoutedOptions, routedPerTest } from "./routed.ts";
import {
  beginStream,
  contextReply,
  events,
  type Received,
  type ScriptedWorker,
  STATE,
  sendJson,
} from "./scripted_worker.ts";

const routed = routedPerTest();
const OURS = { kvt_protocol: 1, offer_ms: 60_000, first_event: "first_token", max_batch_size: 8 };

/** Scripted workers that say of themselves what ours say. */
const start = (options: RoutedOptions = {}, info: object = {}) =>
  routed({
    ...options,
    prepare: (workers) => {
      const endpoint = { ctx_dp_rank: 0, ctx_info_endpoint: "tcp://127.0.0.1:7001" };
      for (const worker of workers.context) worker.info = { ...OURS, disaggregated_params: endpoint };
      for (const worker of workers.generation) {
        worker.info = { ...OURS, ...info };
        worker.models = ["tiny-gen"];
      }
      options.prepare?.(workers);
    },
  });

/** Reads a stream piece by piece. */
async function opened(answer: Promise<Response>) {
  const response = await answer;
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const next = async (): Promise<string> => Buffer.from((await reader.read()).value ?? []).toString();
  const rest = async (): Promise<string> => {
    let text = "";
    for (let piece = await next(); piece !== ""; piece = await next()) text += piece;
    return text;
  };
  return { status: response.status, next, rest };
}

const dataOf = (event: string) => JSON.parse(event.slice("data: ".length));
const refuse = (status: number, code: string) => (received: Received) =>
  sendJson(received, JSON.stringify({ error: { message: code, type: "x", code, param: null } }), status);
const stream = (received: Received, pieces: readonly string[] = events) => {
  const response = beginStream(received);
  for (const piece of pieces) response.write(piece);
  response.end();
};
/** What the generation worker is told to go on from. */
const firstTokens = ({ generation }: Pick<Routed, "generation">) =>
  generation.flatMap(({ requests }) =>
    requests.map(({ body }) => (body as { disaggregated_params: object }).disaggregated_params),
  );

describe("token 0 of a stream", () => {
  it("is with the client before the generation worker has said a word; the rest follows without it", async () => {
    const { complete, gen } = await start();
    let asked: Received | undefined;
    gen.generation = (received) => {
      asked = received;
    };
    const client = await opened(complete({ stream: true }));
    const first = await client.next();
    expect(dataOf(first)).toMatchObject({
      object: "text_completion",
      model: "tiny-gen",
      choices: [{ index: 0, text: " one", finish_reason: null }],
    });
    expect(Math.abs(dataOf(first).created - Date.now() / 1000)).toBeLessThan(10);
    await gen.until(() => asked !== undefined);
    stream(asked as Received);
    expect(await client.rest()).toBe(events.slice(1).join(""));
  });

  it("is a chat's first chunk, with role, log probabilities and an empty usage where these are asked for", async () => {
    const { post, ctx, gen } = await start();
    const logprobs = { content: [{ token: " one", logprob: -0.5, bytes: [32], top_logprobs: [] }], refusal: null };
    ctx.context = (received) => {
      const reply = JSON.parse(contextReply());
      const [{ text: content, ...choice }] = reply.choices;
      reply.choices = [{ ...choice, message: { role: "assistant", content, refusal: null }, logprobs }];
      sendJson(received, JSON.stringify(reply));
    };
    const chunk = (delta: object) =>
      `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: null }] })}\n\n`;
    const rest = [chunk({ content: " two" }), "data: [DONE]\n\n"];
    gen.generation = (received) => stream(received, [chunk({ role: "assistant", content: " one" }), ...rest]);
    const client = await opened(
      post("/v1/chat/completions", {
        model: "tiny",
        messages: [{ role: "user", content: "a" }],
        stream: true,
        stream_options: { include_usage: true },
        logprobs: true,
      }),
    );
    expect(dataOf(await client.next())).toMatchObject({
      object: "chat.completion.chunk",
      choices: [{ delta: { role: "assistant", content: " one" }, logprobs, finish_reason: null }],
      usage: null,
    });
    expect(await client.rest()).toBe(rest.join(""));
  });

  it("is left out of the stream whatever pieces that comes in", async () => {
    const { complete, gen } = await start();
    const text = events.join("").replace(" two", " zw\u00f6lf \u{1f600}");
    gen.generation = async (received) => {
      const response = beginStream(received);
      for (const byte of Buffer.from(text)) {
        if (!response.write(Buffer.from([byte]))) await once(response, "drain");
      }
      response.end();
    };
    const client = await opened(complete({ stream: true }));
    await client.next();
    expect(await client.rest()).toBe(text.slice((events[0] as string).length));
  });

  it.each<[string, object, object, Partial<Record<string, unknown>>]>([
    ["the answer is no stream", {}, {}, {}],
    ["the prompt is echoed before it", { stream: true, echo: true }, {}, {}],
    ["the worker does not say how its streams begin", { stream: true }, { first_event: undefined }, {}],
    ["the worker has more requests than its batch takes", { stream: true }, { max_batch_size: 0 }, {}],
    ["the context worker is of another make", { stream: true }, {}, { kvt_protocol: undefined }],
  ])("waits for the generation worker when %s", async (_why, fields, info, contextInfo) => {
    const { complete, gen } = await start(
      {
        prepare: ({ context }) => {
          for (const worker of context) worker.info = { ...worker.info, ...contextInfo };
        },
      },
      info,
    );
    gen.generation = refuse(429, "queue_full");
    const response = await complete(fields);
    expect(response.status).toBe(429);
    expect(await errorOf(response)).toMatchObject({ code: "queue_full", hop: "generation" });
  });
});

describe("after token 0 has gone to the client", () => {
  it.each<[string, (received: Received) => void]>([
    ["dies", (received) => void received.response.socket?.resetAndDestroy()],
    [
      "dies after its headers",
      (received) => {
        beginStream(received).flushHeaders();
        setImmediate(() => received.response.socket?.resetAndDestroy());
      },
    ],
    ["is full", refuse(429, "queue_full")],
    ["drains", refuse(503, "draining")],
    ["begins with another token", (received) => stream(received, events.slice(1))],
    ["begins with no token", (received) => stream(received, ["data: {}\n\n"])],
  ])("a generation worker that %s is replaced by the other one, with the same KV", async (_how, script) => {
    const { complete, generation, ctx } = await start({ generation: 2 });
    (generation[0] as ScriptedWorker).generation = script;
    const client = await opened(complete({ stream: true }));
    expect(dataOf(await client.next()).choices[0].text).toBe(" one");
    expect(await client.rest()).toBe(events.slice(1).join(""));
    expect(generation.map(({ requests }) => requests.length)).toEqual([1, 1]);
    expect(ctx.requests).toHaveLength(1);
  });

  it("KV that is gone is computed again, and whoever gets that goes on from the token that the client has", async () => {
    const { complete, context, generation } = await start({ context: 2 });
    const reply = (token: number, logprob: number) =>
      contextReply({
        params: `{"request_type":"context_only","first_gen_tokens":[${token}],"first_gen_log_probs":[{"logprob":${logprob},"top":[]}],"ctx_request_id":7,"disagg_request_id":7,"encoded_opaque_state":"${STATE}"}`,
      });
    const [one, other] = context as [ScriptedWorker, ScriptedWorker];
    one.context = (received) => sendJson(received, reply(11, -0.25));
    other.context = (received) => sendJson(received, reply(99, -4));
    let tries = 0;
    const [gen] = generation as [ScriptedWorker];
    gen.generation = (received) => (tries++ === 0 ? refuse(404, "no_offer")(received) : stream(received));
    const client = await opened(complete({ stream: true }));
    await client.next();
    expect(await client.rest()).toBe(events.slice(1).join(""));
    expect([one.requests.length, other.requests.length]).toEqual([1, 1]);
    const pinned = { first_gen_tokens: [11], first_gen_log_probs: [{ logprob: -0.25, top: [] }] };
    expect(firstTokens({ generation })).toMatchObject([pinned, pinned]);
  });

  it("a second prefill whose first token ends the answer is no answer to what the client has", async () => {
    const { complete, ctx, gen } = await start({ settings: { maxRetries: 1 } });
    let prefills = 0;
    ctx.context = (received) => sendJson(received, contextReply(prefills++ === 0 ? {} : { finish: "stop" }));
    gen.generation = refuse(404, "no_offer");
    const client = await opened(complete({ stream: true }));
    await client.next();
    expect(dataOf(await client.rest())).toMatchObject({ error: { code: "worker_nonsense", hop: "context" } });
  });

  it("a request that nobody can go on with ends with one error event and without [DONE], and its KV is given back", async () => {
    const { complete, ctx, gen } = await start();
    gen.generation = refuse(500, "internal");
    const client = await opened(complete({ stream: true }));
    expect(client.status).toBe(200);
    await client.next();
    expect(dataOf(await client.rest())).toMatchObject({ error: { code: "worker_failed", hop: "generation" } });
    expect(gen.requests).toHaveLength(2);
    await ctx.until(() => ctx.released.length === 1);
  });

  it("a generation worker that says nothing is given up within the request timeout", async () => {
    const { complete, ctx, gen } = await start({ settings: { requestTimeoutMs: 400 } });
    gen.generation = () => undefined;
    const client = await opened(complete({ stream: true }));
    await client.next();
    expect(dataOf(await client.rest())).toMatchObject({ error: { code: "request_timeout" } });
    await ctx.until(() => ctx.released.length === 1);
  });

  it("a client that leaves ends the generation hop and frees the KV", async () => {
    const { complete, ctx, gen } = await start();
    let asked: Received | undefined;
    gen.generation = (received) => {
      asked = received;
    };
    const leave = new AbortController();
    const client = await opened(complete({ stream: true }, { signal: leave.signal }));
    await client.next();
    await gen.until(() => asked !== undefined);
    leave.abort();
    await (asked as Received).abandoned;
    await ctx.until(() => ctx.released.length === 1);
  });
});

describe("token 0 in the generation-first flow", () => {
  const settings = { scheduleStyle: "generation_first" } as const;

  it("comes from the context worker's reply when that is there first", async () => {
    const { complete, gen } = await start({ settings });
    let asked: Received | undefined;
    gen.generation = (received) => {
      asked = received;
    };
    const client = await opened(complete({ stream: true }));
    expect(dataOf(await client.next()).choices[0].text).toBe(" one");
    await gen.until(() => asked !== undefined);
    stream(asked as Received);
    expect(await client.rest()).toBe(events.slice(1).join(""));
  });

  it("comes from the generation worker when that is first, and is not said twice", async () => {
    const { complete, ctx, gen } = await start({ settings });
    const prefills: Received[] = [];
    ctx.context = (received) => void prefills.push(received);
    let asked: Received | undefined;
    gen.generation = (received) => {
      asked = received;
      beginStream(received).write(events[0]);
    };
    const client = await opened(complete({ stream: true }));
    expect(await client.next()).toBe(events[0]);
    sendJson(prefills[0] as Received, contextReply());
    asked?.response.end(events.slice(1).join(""));
    expect(await client.rest()).toBe(events.slice(1).join(""));
  });

  it("that ends the answer leaves the ending for the client", async () => {
    const { complete, gen, ctx } = await start({ settings });
    const prefills: Received[] = [];
    ctx.context = (received) => {
      prefills.push(received);
      sendJson(received, contextReply());
    };
    const last = (text: string) =>
      `data: ${JSON.stringify({ id: "c", choices: [{ index: 0, text, logprobs: null, finish_reason: "length" }] })}\n\n`;
    let asked: Received | undefined;
    gen.generation = (received) => {
      asked = received;
    };
    const client = await opened(complete({ stream: true, max_tokens: 1 }));
    expect(dataOf(await client.next()).choices[0].text).toBe(" one");
    await gen.until(() => asked !== undefined);
    stream(asked as Received, [last(" one"), "data: [DONE]\n\n"]);
    expect(await client.rest()).toBe(`${last("")}data: [DONE]\n\n`);
  });

  it("a try that fails is repeated, and a repeated one that samples another token ends with an error event", async () => {
    const { complete, generation } = await start({ generation: 2, settings });
    const [one, other] = generation as [ScriptedWorker, ScriptedWorker];
    let show = (): void => {};
    const shown = new Promise<void>((resolve) => {
      show = resolve;
    });
    one.generation = async (received) => {
      await shown;
      received.response.socket?.resetAndDestroy();
    };
    other.generation = (received) => stream(received, events.slice(1));
    const client = await opened(complete({ stream: true }));
    expect(dataOf(await client.next()).choices[0].text).toBe(" one");
    show();
    expect(dataOf(await client.rest())).toMatchObject({ error: { code: "worker_nonsense", hop: "generation" } });
    expect([one.requests.length, other.requests.length]).toEqual([1, 1]);
  });
});
