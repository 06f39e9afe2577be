import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { routedPerTest } from "./routed.ts";
import { beginStream, contextReply, events, type Received, type ScriptedWorker, sendJson } from "./scripted_worker.ts";

const start = routedPerTest();
const sockets: Socket[] = [];
// What is registered last ends first.
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

/** A client on a bare socket, so that the test decides when bytes are read. */
async function rawClient(port: number, body: object): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  sockets.push(socket);
  const text = JSON.stringify(body);
  socket.write(
    `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  await once(socket, "connect");
  return socket;
}

const request = { model: "tiny", prompt: "a", max_tokens: 9, stream: true };

describe("a stream", () => {
  it("reaches the client byte for byte, whatever pieces the worker sends it in", async () => {
    const { complete, gen } = await start();
    const text = `: comment\n\n${events.join("")}`.replace(" one", " h\u00e9llo \u{1f600}");
    gen.generation = async (received) => {
      const response = beginStream(received);
      for (const byte of Buffer.from(text)) {
        if (!response.write(Buffer.from([byte]))) await once(response, "drain");
      }
      response.end();
    };
    const response = await complete({ stream: true });
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    expect(response.headers.get("x-accel-buffering")).toBe("no");
    expect(response.headers.get("cache-control")).toBe("no-cache");
    expect(await response.text()).toBe(text);
  });

  it("passes each piece on when it comes, not when the answer is complete", async () => {
    const { complete, gen } = await start();
    let received: Received | undefined;
    gen.generation = (each) => {
      received = each;
      beginStream(each).write(events[0]);
    };
    const response = await complete({ stream: true });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe(events[0]);
    received?.response.write(events[1]);
    expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe(events[1]);
    received?.response.end(events[3]);
    expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe(events[3]);
    expect((await reader.read()).done).toBe(true);
  });

  it("for a client that reads nothing holds back the worker, not megabytes in the router", async () => {
    const { router, gen } = await start();
    const piece = Buffer.alloc(64 * 1024, "data: x\n\n");
    let sent = 0;
    const stalled = new Promise<void>((resolve) => {
      gen.generation = async (received) => {
        const response = beginStream(received);
        // Socket buffers of both connections take some megabytes; then the worker's writes no longer drain.
        while (response.write(piece) || (await drains(response, 500))) sent += piece.length;
        resolve();
        await received.abandoned;
      };
    });
    const client = await rawClient(router.port, request);
    client.pause();
    await stalled;
    expect(sent).toBeLessThan(64 << 20);
    // Reading again lets the worker write again: nothing was lost or torn down meanwhile.
    const before = client.bytesRead;
    client.resume();
    await once(client, "data");
    while (client.bytesRead < before + sent) await once(client, "data");
  });

  it("of a client that reads nothing for the request timeout is ended, at the worker too", async () => {
    const { router, gen } = await start({ settings: { requestTimeoutMs: 700 } });
    const piece = Buffer.alloc(64 * 1024, "data: x\n\n");
    const abandoned = new Promise<void>((resolve) => {
      gen.generation = async (received) => {
        const response = beginStream(received);
        received.abandoned.then(resolve);
        while (!response.destroyed)
          if (!response.write(piece)) await Promise.race([once(response, "drain"), received.abandoned]);
      };
    });
    const client = await rawClient(router.port, request);
    client.pause();
    await abandoned;
  });

  it("that breaks after its first byte ends with one error event and without [DONE], and is not tried again", async () => {
    const { complete, generation } = await start({ generation: 2 });
    for (const worker of generation) {
      worker.generation = (received) => {
        beginStream(received).write(events[0], () =>
          received.response.write('data: {"choices":[', () => received.response.socket?.resetAndDestroy()),
        );
      };
    }
    const text = await (await complete({ stream: true })).text();
    expect(text.startsWith(events[0] as string)).toBe(true);
    expect(text).not.toContain("[DONE]");
    const last = text.split("\n\n").filter(Boolean).at(-1) ?? "";
    expect(JSON.parse(last.slice("data: ".length))).toMatchObject({
      error: { code: "worker_lost", hop: "generation", worker: expect.stringMatching(/^127\.0\.0\.1:\d+$/) },
    });
    expect(generation.flatMap(({ requests }) => requests)).toHaveLength(1);
  });

  it("that falls silent for the request timeout ends with an error event", async () => {
    const { complete, gen, ctx } = await start({ settings: { requestTimeoutMs: 600 } });
    gen.generation = (received) => void beginStream(received).write(events[0]);
    const text = await (await complete({ stream: true })).text();
    expect(text).toContain('"code":"worker_silent"');
    await ctx.until(() => ctx.released.length === 1);
  });

  it("may last longer than the request timeout while bytes come", async () => {
    const { complete, gen } = await start({ settings: { requestTimeoutMs: 600 } });
    let beats = 0;
    gen.generation = (received) => {
      const response = beginStream(received);
      const beat = setInterval(() => {
        response.write(": beat\n\n");
        beats += 1;
        if (beats < 12) return;
        clearInterval(beat);
        response.end(events[3]);
      }, 100);
    };
    expect(await (await complete({ stream: true })).text()).toContain("[DONE]");
  });

  it("is tried elsewhere when the worker dies after its headers and before the first byte", async () => {
    const { complete, generation } = await start({ generation: 2 });
    (generation[0] as ScriptedWorker).generation = (received) => {
      beginStream(received).flushHeaders();
      setImmediate(() => received.response.socket?.resetAndDestroy());
    };
    expect(await (await complete({ stream: true })).text()).toBe(events.join(""));
    expect(generation.map(({ requests }) => requests.length)).toEqual([1, 1]);
  });
});

describe("a client that leaves", () => {
  it("during the prefill ends the context hop at once and tells the worker", async () => {
    const { complete, ctx, gen, log } = await start({ settings: { authToken: "secret" } });
    const leave = new AbortController();
    let abandoned: Promise<void> | undefined;
    ctx.context = (received) => {
      abandoned = received.abandoned;
      leave.abort();
    };
    const headers = { "content-type": "application/json", "x-request-id": "leaver" };
    await expect(complete({}, { signal: leave.signal, headers })).rejects.toThrow();
    await abandoned;
    await ctx.until(() => ctx.aborted.length > 0);
    expect(ctx.aborted).toEqual(["leaver"]);
    expect(ctx.authorizations).toEqual(["Bearer secret"]);
    expect(gen.requests).toHaveLength(0);
    expect(log.find((line) => line.event === "request")).toMatchObject({ status: 499, code: "client_gone" });
  });

  it("during the decode ends the generation hop and frees the context blocks within 100 ms", async () => {
    const { complete, ctx, gen } = await start();
    ctx.context = (received) => sendJson(received, contextReply());
    const took: number[] = [];
    // The fastest of five: other work on the machine may delay one, a timer would delay all.
    for (let i = 1; i <= 5; i++) {
      const leave = new AbortController();
      let abandoned: Promise<void> | undefined;
      let leftAt = 0;
      gen.generation = (received) => {
        abandoned = received.abandoned;
        leftAt = performance.now();
        leave.abort();
      };
      await expect(complete({ stream: true }, { signal: leave.signal })).rejects.toThrow();
      await abandoned;
      await ctx.until(() => ctx.released.length === i);
      took.push(performance.now() - leftAt);
    }
    expect(Math.min(...took), `${took} ms`).toBeLessThan(100);
    expect(ctx.released[0]).toBe('{"ctx_request_id":4611686018427387905,"encoded_opaque_state":"b3BhcXVl"}');
    expect(ctx.aborted).toEqual([]);
  });

  it("in the middle of its stream ends the generation hop", async () => {
    const { complete, gen } = await start();
    const leave = new AbortController();
    let abandoned: Promise<void> | undefined;
    gen.generation = (received) => {
      abandoned = received.abandoned;
      beginStream(received).write(events[0]);
    };
    const response = await complete({ stream: true }, { signal: leave.signal });
    await (response.body as ReadableStream<Uint8Array>).getReader().read();
    leave.abort();
    await abandoned;
  });

  it("does not abort another request in flight that has the same id", async () => {
    const { complete, ctx } = await start();
    const leave = new AbortController();
    const init = { headers: { "content-type": "application/json", "x-request-id": "twin" } };
    const held: Received[] = [];
    ctx.context = (received) => void held.push(received);
    const leaver = complete({}, { ...init, signal: leave.signal });
    const stayer = complete({}, init);
    await ctx.until(() => held.length === 2);
    leave.abort();
    await expect(leaver).rejects.toThrow();
    await Promise.race(held.map(({ abandoned }) => abandoned));
    for (const received of held) if (!received.response.destroyed) sendJson(received, contextReply());
    expect((await stayer).status).toBe(200);
    expect(ctx.aborted).toEqual([]);
  });

  it("leaves nothing in flight at the router", async () => {
    const { complete, ctx, router } = await start();
    const leave = new AbortController();
    ctx.context = () => leave.abort();
    await expect(complete({}, { signal: leave.signal })).rejects.toThrow();
    await router.drained();
    expect(await (await fetch(`${router.url}/metrics`)).text()).toMatch(/^kvt_router_requests_in_flight 0$/m);
  });
});

const drains = (response: { once(event: "drain", listener: () => void): unknown }, limitMs: number): Promise<boolean> =>
  new Promise((resolve) => {
    const limit = setTimeout(() => resolve(false), limitMs);
    response.once("drain", () => {
      clearTimeout(limit);
      resolve(true);
    });
  });
