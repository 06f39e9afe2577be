import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RequestId, requestId } from "../../../src/ids.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";

const layout = { layers: 4, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
const BLOCKS = 64;
const TOKENS = 150;
const FIRST = {
  firstTokens: [7],
  firstLogProbs: [{ logprob: -1.25, top: [{ token: 7, logprob: -1.25 }] }],
  cachedTokens: 32,
};

let socketDir: string;
let next = 1;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-first-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

const open = (options: Partial<OpenOptions> = {}): Promise<KvTransceiver> =>
  KvTransceiver.open({ layout, pool: { memory: "host", blocks: BLOCKS }, socketDir, ...options });

const peerOf = (kv: KvTransceiver) => ({ instance: kv.instance, endpoints: kv.infoEndpoints });

/** Writes `value` into the blocks of [from, to). */
function compute(kv: KvTransceiver, { ids }: BlockHold, value: number, from: number, to: number): void {
  const bytes = new Uint8Array(kv.memory);
  for (let block = Math.floor(from / 32); block * 32 < to; block++) {
    const id = ids[block] ?? 0;
    bytes.fill(value, id * kv.blockBytes, (id + 1) * kv.blockBytes);
  }
}

function receive(kv: KvTransceiver, from: KvTransceiver, id: RequestId, tokens = TOKENS) {
  using blocks = kv.pool.allocate(5);
  return { ids: [...blocks.ids], receiving: kv.receive({ peer: peerOf(from), requestId: id, tokens, blocks }) };
}

describe("a receive before there is an offer", () => {
  it("waits at the sender, gets each chunk as it is computed, and ends with the first token", async () => {
    await using sender = await open();
    await using receiver = await open();
    const id = requestId(next++);
    const { receiving, ids } = receive(receiver, sender, id);
    await sender.awaitPull(id);
    expect(receiver.stats().receives.open).toBe(1);
    using source = sender.pool.allocate(5);
    const sending = sender.send({ requestId: id, tokens: TOKENS, blocks: source, ready: 0 });
    const progress = receiving.progress[Symbol.asyncIterator]();
    for (const [from, to] of [
      [0, 64],
      [64, 128],
    ] as const) {
      compute(sender, source, to, from, to);
      sending.ready(to);
      expect(await progress.next()).toEqual({ value: to, done: false });
    }
    compute(sender, source, 9, 128, TOKENS);
    sending.finish(FIRST);
    const report = await receiving.done;
    expect(report).toMatchObject({ first: FIRST, chunks: 3, tokens: TOKENS, attempts: 1 });
    expect((await sending.done).bytes).toBe(report.bytes);
    const arrived = new Uint8Array(receiver.memory);
    const values = ids.map((block) => arrived[block * receiver.blockBytes]);
    expect(values).toEqual([64, 64, 128, 128, 9]);
    source.release();
    await receiving.released;
    expect([sender.pool.free, receiver.pool.free]).toEqual([BLOCKS, BLOCKS]);
  });

  it("is not complete with all of the KV and no first token", async () => {
    await using sender = await open();
    await using receiver = await open();
    const id = requestId(next++);
    const { receiving } = receive(receiver, sender, id);
    using source = sender.pool.allocate(5);
    const sending = sender.send({ requestId: id, tokens: TOKENS, blocks: source });
    const progress = receiving.progress[Symbol.asyncIterator]();
    expect(await progress.next()).toEqual({ value: TOKENS, done: false });
    expect(receiver.stats().receives).toMatchObject({ open: 1, completed: 0 });
    sending.finish(FIRST);
    expect((await receiving.done).first).toEqual(FIRST);
  });

  it("fetches only what it lacks", async () => {
    await using sender = await open();
    await using receiver = await open();
    const id = requestId(next++);
    using blocks = receiver.pool.allocate(5);
    const all = { peer: peerOf(sender), requestId: id, tokens: TOKENS, blocks, skipTokens: 96 };
    const receiving = receiver.receive(all);
    using source = sender.pool.allocate(5);
    const sending = sender.send({ requestId: id, tokens: TOKENS, blocks: source, ready: 0 });
    sending.ready(64);
    sending.finish(FIRST);
    expect((await receiving.done).bytes).toBe((TOKENS - 96) * 4 * 2 * 2 * 16 * 4);
  });

  it("keeps its wait alive for longer than a lease, and has a full lease then", async () => {
    const lease = { leaseMs: 300 };
    await using sender = await open({ lease });
    await using receiver = await open({ lease });
    const id = requestId(next++);
    const { receiving } = receive(receiver, sender, id);
    await sender.awaitPull(id);
    await new Promise((resolve) => setTimeout(resolve, 2 * lease.leaseMs));
    using source = sender.pool.allocate(5);
    const sending = sender.send({ requestId: id, tokens: TOKENS, blocks: source });
    sending.finish(FIRST);
    expect(await receiving.done).toMatchObject({ attempts: 1 });
  });

  it("needs no turn among the concurrent pulls, which others would wait for", async () => {
    await using sender = await open();
    await using receiver = await open({ maxConcurrentPulls: 1 });
    const waiting = receive(receiver, sender, requestId(next++)).receiving;
    using source = sender.pool.allocate(5);
    const id = requestId(next++);
    const sending = sender.send({ requestId: id, tokens: TOKENS, blocks: source });
    using blocks = receiver.pool.allocate(5);
    await receiver.receive({ state: sending.state, blocks }).done;
    expect(waiting.cancel()).toBe("cancelled");
    await expect(waiting.done).rejects.toMatchObject({ code: "CANCELLED" });
  });

  it("that is cancelled is forgotten by the sender", async () => {
    await using sender = await open();
    await using receiver = await open();
    const id = requestId(next++);
    const { receiving } = receive(receiver, sender, id);
    await sender.awaitPull(id);
    receiving.cancel();
    await expect.poll(() => sender.stats().sends.waiting).toBe(0);
    expect(receiver.pool.free).toBe(BLOCKS);
  });

  it("hears at once that there will be no offer, or that its sender closes", async () => {
    const sender = await open();
    await using receiver = await open();
    const [refused, closed] = [requestId(next++), requestId(next++)];
    const first = receive(receiver, sender, refused).receiving;
    const second = receive(receiver, sender, closed).receiving;
    await Promise.all([sender.awaitPull(refused), sender.awaitPull(closed)]);
    sender.refuse(refused);
    await expect(first.done).rejects.toMatchObject({ code: "GONE" });
    await sender.drain();
    await expect(second.done).rejects.toMatchObject({ code: "DRAINING" });
    await expect(sender.awaitPull(closed)).rejects.toMatchObject({ code: "DRAINING" });
    await sender.close();
  });

  it("of a sequence that is another one at the sender fails on both sides", async () => {
    await using sender = await open();
    await using receiver = await open();
    for (const tokens of [TOKENS - 10, TOKENS + 5]) {
      const id = requestId(next++);
      const { receiving } = receive(receiver, sender, id, TOKENS);
      using source = sender.pool.allocate(5);
      const sending = sender.send({ requestId: id, tokens, blocks: source, ready: 0 });
      sending.finish(FIRST);
      await expect(receiving.done).rejects.toMatchObject({
        code: "PROTOCOL",
        message: expect.stringContaining("tokens"),
      });
      await expect(sending.done).rejects.toMatchObject({ code: "RECEIVER_FAILED" });
      await receiving.released;
    }
  });

  it("waits no longer than kv_transfer_timeout_ms, with a code of its own", async () => {
    await using sender = await open();
    await using receiver = await open({ config: { kv_transfer_timeout_ms: 200 } });
    const { receiving } = receive(receiver, sender, requestId(next++));
    await expect(receiving.done).rejects.toMatchObject({ code: "QUEUE_TIMEOUT", status: 503 });
    await expect.poll(() => sender.stats().sends.waiting).toBe(0);
  });
});

describe("who may ask before there is an offer", () => {
  const apart = () => ({ socketDir: mkdtempSync(join(socketDir, "host-")) });

  it("a member of the cluster over TCP, by the secret", async () => {
    await using sender = await open({ ...apart(), authToken: "secret" });
    await using receiver = await open({ ...apart(), authToken: "secret" });
    const id = requestId(next++);
    const { receiving } = receive(receiver, sender, id);
    await sender.awaitPull(id);
    expect(receiver.stats().peers).toMatchObject([{ connected: true }]);
    expect(receiving.cancel()).toBe("cancelled");
  });

  it.each([
    ["nobody has a secret", undefined, undefined],
    ["only the receiver has one", undefined, "secret"],
    ["only the sender has one", "secret", undefined],
    ["the secrets differ", "secret", "another"],
  ])("nobody over TCP where %s", async (_where, theirs, ours) => {
    const token = (authToken: string | undefined) => (authToken === undefined ? {} : { authToken });
    await using sender = await open({ ...apart(), ...token(theirs) });
    await using receiver = await open({ ...apart(), ...token(ours) });
    const { receiving } = receive(receiver, sender, requestId(next++));
    await expect(receiving.done).rejects.toMatchObject({ code: "PEER_REFUSED" });
    expect(receiver.pool.free).toBe(BLOCKS);
  });

  it("no endpoint that is none, and no first tokens that are none", async () => {
    await using sender = await open();
    using blocks = sender.pool.allocate(5);
    for (const endpoint of [
      "",
      "http://127.0.0.1:1",
      "tcp://127.0.0.1:1",
      String(sender.infoEndpoints[0]).replace(/epoch=.{16}/, "epoch=x"),
    ]) {
      const wanted = {
        peer: { instance: "x", endpoints: [endpoint] },
        requestId: requestId(1),
        tokens: TOKENS,
        blocks,
      };
      expect(() => sender.receive(wanted)).toThrow(expect.objectContaining({ code: "BAD_STATE", status: 400 }));
    }
    const sending = sender.send({ requestId: requestId(1), tokens: TOKENS, blocks, ready: 0 });
    for (const firstTokens of [[], [-1], [1.5], Array.from({ length: 65 }, () => 1)]) {
      expect(() => sending.finish({ firstTokens })).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
    }
    sending.cancel();
  });
});
