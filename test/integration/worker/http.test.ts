import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { createLogger } from "../../../src/observability/log.ts";
import { startWorker, type WorkerServer } from "../../../src/worker/server.ts";
import { eventually, until } from "../waits.ts";
import { ask, type Body, post, Refused } from "./client.ts";
import { transceiverDefaults } from "./transceiver_defaults.ts";
import { tinyModel } from "./worker_process.ts";

const settings = {
  ...defaultWorkerSettings(tinyModel),
  host: "127.0.0.1",
  port: 0,
  transceiver: transceiverDefaults,
  maxQueueSize: 4,
};
const hooks = { log: createLogger({ name: "test", level: "silent" }) };

interface ErrorBody {
  readonly error: { readonly message: string; readonly code: string; readonly request_id: string };
}

describe("a worker over HTTP", () => {
  let worker: WorkerServer;

  beforeAll(async () => {
    worker = await startWorker(settings, { ...hooks, requestReadMs: 700 });
  });
  afterAll(() => worker.close({ drainMs: 1_000 }));

  const get = (path: string, headers: Record<string, string> = {}): Promise<Response> =>
    fetch(worker.url + path, { headers });
  const refusal = async (body: string | Body, path = "/v1/completions"): Promise<Refused> => {
    const error = await post(worker.url, path, body).catch((thrown: unknown) => thrown);
    if (error instanceof Refused) return error;
    throw new Error(`not refused: ${JSON.stringify(body).slice(0, 200)}`);
  };

  it("says what it is, and that it is well", async () => {
    expect(await (await get("/health")).json()).toEqual({ status: "ok" });
    expect((await get("/health/live")).status).toBe(200);
    expect((await get("/health_generate")).status).toBe(200);
    expect(await (await get("/version")).json()).toHaveProperty("version");
    expect(await (await get("/v1/models")).json()).toMatchObject({ data: [{ id: "tiny", max_model_len: 2048 }] });
    const info = (await (await get("/server_info")).json()) as Body;
    expect(info).toMatchObject({
      kvt_protocol: 1,
      engine: "reference",
      geometry: { layers: 5, kv_heads: 2, head_dim: 32, dtype: "f32", tokens_per_block: 32, layout: "HND", tp: 1 },
      transports: ["shared_memory"],
      offer_ms: 60_000,
    });
    expect(info.epoch).toMatch(/^[0-9a-f]{16}$/);
    expect(await (await get("/perf_metrics")).json()).toEqual([]);
    expect(JSON.parse(await post(worker.url, "/kv_cache_events", ""))).toMatchObject([{ data: { type: "created" } }]);
  });

  it("moves its steady clock into the router's", async () => {
    const before = (await (await get("/steady_clock_offset")).json()) as { receive_ts: number; transmit_ts: number };
    expect(before.transmit_ts).toBeGreaterThanOrEqual(before.receive_ts);
    await post(worker.url, "/steady_clock_offset", { offset: 1000 });
    const after = (await (await get("/steady_clock_offset")).json()) as { receive_ts: number };
    expect(after.receive_ts - before.receive_ts).toBeGreaterThanOrEqual(1000);
    await post(worker.url, "/steady_clock_offset", { offset: 0 });
  });

  it("shows metrics as text, and iteration statistics to those who ask for JSON", async () => {
    await ask(worker.url, "completion", { prompt: "Once", max_tokens: 2 });
    const text = await (await get("/metrics")).text();
    expect(text).toMatch(/kvt_worker_requests_total\{role="aggregated",status="200"\} [1-9]/);
    expect(text).toMatch(/kvt_worker_blocks\{state="total"\} [1-9]/);
    expect(text).toMatch(/to="GENERATION_COMPLETE"/);
    expect(await (await get("/prometheus/metrics")).text()).toContain("kvt_worker_phase_seconds_bucket");
    const statistics = await (await get("/metrics", { accept: "application/json" })).json();
    expect(statistics).toMatchObject([{ numActiveRequests: 0, numQueuedRequests: 0 }]);
  });

  it("carries the caller's x-request-id, or one of its own, in every answer and error body", async () => {
    for (const [path, method] of [
      ["/health", "GET"],
      ["/nothing/here", "GET"],
      ["/v1/completions", "POST"],
    ] as const) {
      const answer = await fetch(worker.url + path, {
        method,
        headers: { "x-request-id": "mine-1", "content-type": "application/json" },
        ...(method === "POST" ? { body: "{}" } : {}),
      });
      expect(answer.headers.get("x-request-id")).toBe("mine-1");
      const body = (await answer.json()) as Partial<ErrorBody>;
      if (body.error !== undefined) expect(body.error.request_id).toBe("mine-1");
    }
    expect((await get("/health")).headers.get("x-request-id")).toMatch(/.{16}/);
  });

  it("answers 400, 404, 413, 415 and 501 with the thing, the place and a code", async () => {
    const prompt = "x";
    const table: readonly (readonly [body: string | Body, status: number, code: string, names: string])[] = [
      ["{", 400, "bad_json", "JSON"],
      ["[]", 400, "bad_json", "array"],
      [{}, 400, "invalid_request", "`prompt`"],
      [{ prompt: "" }, 400, "invalid_request", "empty"],
      [{ prompt, max_tokens: 0 }, 400, "invalid_request", "`max_tokens`"],
      [{ prompt, max_tokens: 3000 }, 400, "invalid_request", "max_seq_len"],
      [{ prompt, n: 2 }, 400, "unsupported_parameter", "`n`"],
      [{ prompt: ["a", "b"] }, 400, "invalid_request", "several prompts"],
      [{ prompt: [5000] }, 400, "invalid_request", "5000"],
      [{ prompt, tempreature: 1 }, 400, "unknown_parameter", "tempreature"],
      [{ prompt: Array.from({ length: 2048 }, () => 5) }, 413, "prompt_too_long", "2048"],
      [
        { prompt, stream: true, disaggregated_params: { request_type: "context_only" } },
        400,
        "invalid_request",
        "`stream`",
      ],
      [
        { prompt, disaggregated_params: { request_type: "generation_only" } },
        400,
        "invalid_request",
        "first_gen_tokens",
      ],
      [
        { prompt, disaggregated_params: { request_type: "generation_only", first_gen_tokens: [5] } },
        400,
        "invalid_request",
        "encoded_opaque_state",
      ],
      [{ prompt, disaggregated_params: { request_type: "sideways" } }, 400, "invalid_request", "request_type"],
    ];
    for (const [body, status, code, names] of table) {
      const error = await refusal(body);
      expect([error.status, error.code], JSON.stringify(body).slice(0, 100)).toEqual([status, code]);
      expect(error.body).toContain(names);
    }
    expect((await refusal({ messages: [] }, "/v1/chat/completions")).status).toBe(400);
    expect(await refusal({}, "/v1/responses")).toMatchObject({ status: 501, code: "not_provided" });
    expect((await refusal({}, "/update_weights")).status).toBe(501);
    expect(await refusal({}, "/v1/embeddings")).toMatchObject({ status: 404, code: "route_not_found" });
    const text = await fetch(`${worker.url}/v1/completions`, { method: "POST", body: "hello" });
    expect(text.status).toBe(415);
  });

  it("answers a 10 MB prompt with 413 by its tokens, a 65 MB body with 413, and goes on", async () => {
    const long = await refusal({ prompt: "hello world ".repeat(850_000) });
    expect([long.status, long.code]).toEqual([413, "prompt_too_long"]);
    const huge = await fetch(`${worker.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: "x".repeat(65 << 20) }),
    }).then(
      (answer) => answer.status,
      // The worker may hang up while we still write: that is also no for an answer.
      () => 413,
    );
    expect(huge).toBe(413);
    expect((await ask(worker.url, "completion", { prompt: "Once", max_tokens: 2 })).outputTokens).toBe(2);
  });

  it("answers 408 to a client that does not send its body", async () => {
    const socket = connect(Number(new URL(worker.url).port), "127.0.0.1");
    await once(socket, "connect");
    socket.write(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    );
    const [head] = (await once(socket, "data")) as [Buffer];
    expect(head.toString()).toMatch(/^HTTP\/1\.1 408 /);
    socket.destroy();
  });

  it("answers another model name, but 404 with --strict_model", async () => {
    expect((await ask(worker.url, "completion", { model: "gpt-x", prompt: "Once", max_tokens: 1 })).outputTokens).toBe(
      1,
    );
    const strict = await startWorker({ ...settings, strictModel: true }, hooks);
    const error = await post(strict.url, "/v1/completions", { model: "gpt-x", prompt: "Once" }).catch(
      (thrown) => thrown,
    );
    expect(error).toMatchObject({ status: 404, code: "model_not_found" });
    await strict.close();
  });

  it("refuses disaggregated requests without a transceiver by name", async () => {
    const alone = await startWorker({ ...settings, transceiver: null }, hooks);
    const error = await post(alone.url, "/v1/completions", {
      prompt: "Once",
      disaggregated_params: { request_type: "context_only" },
    }).catch((thrown) => thrown);
    expect(error).toMatchObject({ status: 400, code: "transceiver_disabled" });
    expect((await ask(alone.url, "completion", { prompt: "Once", max_tokens: 1 })).outputTokens).toBe(1);
    await alone.close();
  });

  it("sends 429 with Retry-After when its queue is full", async () => {
    const small = await startWorker({ ...settings, maxBatchSize: 1, maxQueueSize: 1 }, hooks);
    const body = { prompt: "Once upon a time", max_tokens: 400, ignore_eos: true, temperature: 0 };
    const send = (): Promise<Response> =>
      fetch(`${small.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    const answers = await Promise.all(Array.from({ length: 6 }, send));
    const statuses = answers.map(({ status }) => status).sort();
    expect(statuses[0]).toBe(200);
    expect(statuses.at(-1)).toBe(429);
    const full = answers.find(({ status }) => status === 429);
    expect(full?.headers.get("retry-after")).toMatch(/^[1-9]/);
    await small.close();
  });

  it("ends at a stop string, holds back what may begin one, and says which", async () => {
    const messages = [{ role: "user", content: "Hello!" }];
    const body = { messages, temperature: 0, max_tokens: 40, stop: ["help you", "nothing"] };
    for (const stream of [false, true]) {
      const reply = await ask(worker.url, "chat", { ...body, stream });
      expect(reply).toMatchObject({ text: "Hello! How can I ", finish: "stop", stop: "help you" });
    }
    const included = await ask(worker.url, "chat", { ...body, include_stop_str_in_output: true });
    expect(included.text).toBe("Hello! How can I help you");
    const unmet = await ask(worker.url, "chat", { ...body, stop: ["I help you?!"] });
    expect(unmet.text).toBe("Hello! How can I help you?");
    const byId = await ask(worker.url, "chat", { ...body, stop: [], stop_token_ids: [328] });
    expect(byId).toMatchObject({ text: "Hello!", finish: "stop", stop: 328 });
  });

  it("puts the prompt in front of the answer when asked for echo", async () => {
    const body = { prompt: "Once upon a time", max_tokens: 5, temperature: 0 };
    const plain = await ask(worker.url, "completion", body);
    for (const stream of [false, true]) {
      const echoed = await ask(worker.url, "completion", { ...body, stream, echo: true });
      expect(echoed.text).toBe(`Once upon a time${plain.text}`);
    }
  });

  it("gives seeded requests the same text each time, and others their own", async () => {
    const body = { prompt: "Once upon a time", max_tokens: 30, temperature: 1 };
    const seeded = await Promise.all([1, 1, 2].map((seed) => ask(worker.url, "completion", { ...body, seed })));
    expect(seeded[0]?.text).toBe(seeded[1]?.text);
    expect(seeded[0]?.text).not.toBe(seeded[2]?.text);
    const free = await Promise.all([1, 2, 3, 4].map(() => ask(worker.url, "completion", body)));
    expect(new Set(free.map(({ text }) => text)).size).toBeGreaterThan(1);
    const sameId = await Promise.all([1, 2].map(() => ask(worker.url, "completion", body, { id: "the-same" })));
    expect(sameId[0]?.text).toBe(sameId[1]?.text);
  });

  it("aborts by request id, from loopback without a token", async () => {
    const running = ask(
      worker.url,
      "completion",
      { prompt: "Once", max_tokens: 1900, ignore_eos: true },
      { id: "long-1" },
    );
    const ended = running.catch((error: unknown) => error);
    const aborted = async (): Promise<unknown> => {
      const abort = () =>
        fetch(`${worker.url}/kv/abort`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ request_id: "long-1" }),
        });
      // Until it has come there, there is no such request.
      return (await eventually(abort, ({ status }) => status !== 404)).json();
    };
    expect(await aborted()).toMatchObject({ aborted: 1 });
    expect(await ended).toMatchObject({ status: 499, code: "cancelled" });
  });

  it("keeps records of requests", async () => {
    await ask(worker.url, "completion", { prompt: "Once", max_tokens: 3 }, { id: "record-1" });
    const { records } = (await (await get("/kv/transfers?request_id=record-1")).json()) as { records: Body[] };
    expect(records).toMatchObject([{ event: "request", status: 200, role: "aggregated", output_tokens: 3 }]);
  });

  it("asks for the bearer token on its control routes when there is one", async () => {
    const guarded = await startWorker({ ...settings, authToken: "s3cret" }, hooks);
    for (const path of ["/kv/peers", "/kv/transfers"]) {
      expect((await fetch(guarded.url + path)).status).toBe(401);
      expect((await fetch(guarded.url + path, { headers: { authorization: "Bearer wrong!" } })).status).toBe(401);
      expect((await fetch(guarded.url + path, { headers: { authorization: "Bearer s3cret" } })).status).toBe(200);
    }
    await guarded.close();
  });

  it("drains: 503 for new requests and health, the running one ends well", async () => {
    const draining = await startWorker(settings, hooks);
    const running = ask(draining.url, "completion", { prompt: "Once", max_tokens: 300, ignore_eos: true });
    const isRunning = async (): Promise<boolean> => {
      const [statistics] = (await (
        await fetch(`${draining.url}/metrics`, { headers: { accept: "application/json" } })
      ).json()) as { numActiveRequests: number }[];
      return (statistics?.numActiveRequests ?? 0) > 0;
    };
    await until("it runs", isRunning);
    const drained = draining.drained();
    const refused = await post(draining.url, "/v1/completions", { prompt: "x" }).catch((thrown) => thrown);
    expect(refused).toMatchObject({ status: 503, code: "draining" });
    expect((await fetch(`${draining.url}/health`)).status).toBe(503);
    expect((await running).outputTokens).toBe(300);
    await drained;
    await draining.close();
  });

  it("says BIND_FAILED when its port is taken", async () => {
    const taken = startWorker({ ...settings, port: worker.port }, hooks);
    await expect(taken).rejects.toMatchObject({ code: "BIND_FAILED" });
  });
});
