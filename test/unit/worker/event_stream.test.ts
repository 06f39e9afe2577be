import { once } from "node:events";
import { createServer, get, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { EventStream } from "../../../src/worker/event_stream.ts";

const open: Server[] = [];
afterEach(() => {
  for (const server of open.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** A server whose one answer the test writes, and the client's side of it, which does not read until told to. */
async function exchange(): Promise<{ response: ServerResponse; incoming: Promise<IncomingMessage> }> {
  const server = createServer();
  open.push(server);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const request = get({ port, host: "127.0.0.1" });
  const incoming = once(request, "response").then(([message]) => {
    (message as IncomingMessage).pause();
    return message as IncomingMessage;
  });
  const [, response] = (await once(server, "request")) as [IncomingMessage, ServerResponse];
  return { response, incoming };
}

const BIG = `data: ${"x".repeat(100_000)}\n\n`;

describe("an event stream", () => {
  it("sends its status with the first event, so that an earlier error is an answer of its own", async () => {
    const { response, incoming } = await exchange();
    const events = new EventStream(response, { requestId: "r", stallMs: 5_000 });
    expect(events.started).toBe(false);
    events.send("data: 1\n\n");
    expect(events.started).toBe(true);
    const message = await incoming;
    expect(message.headers).toMatchObject({ "content-type": /^text\/event-stream/, "x-request-id": "r" });
    events.done();
    const parts = await message.toArray();
    expect(Buffer.concat(parts).toString()).toBe("data: 1\n\ndata: [DONE]\n\n");
  });

  it("keeps what a slow reader does not take, and gives it all in order", async () => {
    const { response, incoming } = await exchange();
    const events = new EventStream(response, { requestId: "r", stallMs: 5_000 });
    for (let index = 0; index < 200; index++) events.send(BIG.replace("data: ", `data: ${index} `));
    events.done();
    expect(response.writableLength).toBeLessThan(2 * BIG.length);
    const text = Buffer.concat(await (await incoming).toArray()).toString();
    const numbers = [...text.matchAll(/^data: (\d+) /gm)].map(([, number]) => Number(number));
    expect(numbers).toEqual(Array.from({ length: 200 }, (_, index) => index));
    expect(text.endsWith("data: [DONE]\n\n")).toBe(true);
  });

  it("cuts off a reader that takes nothing for too long", async () => {
    const { response, incoming } = await exchange();
    const events = new EventStream(response, { requestId: "r", stallMs: 50 });
    const closed = once(response, "close");
    for (let index = 0; index < 200; index++) events.send(BIG);
    events.done();
    await Promise.all([incoming, closed]);
    expect(response.writableFinished).toBe(false);
  });

  it("says nothing to a client that has left", async () => {
    const { response, incoming } = await exchange();
    const events = new EventStream(response, { requestId: "r", stallMs: 5_000 });
    events.send("data: 1\n\n");
    const closed = once(response, "close");
    (await incoming).destroy();
    await closed;
    events.send(BIG);
    events.done();
    expect(response.destroyed).toBe(true);
  });
});
