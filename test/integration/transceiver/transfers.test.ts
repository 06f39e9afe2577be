import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newEpoch, newToken, requestId } from "../../../src/ids.ts";
import { decodeState, encodeState } from "../../../src/transceiver/opaque_state.ts";
import { until } from "../waits.ts";
import { BLOCKS, BYTES_PER_TOKEN, type Peer, Peers, POOL_TOKENS } from "./peer_process.ts";

describe("transfers between two processes", () => {
  const peers = new Peers();
  let sender: Peer;
  let receiver: Peer;
  let next = 1;
  beforeAll(async () => {
    [sender, receiver] = await Promise.all([peers.open(), peers.open()]);
  });
  afterAll(() => peers[Symbol.asyncDispose]());

  async function move(tokens: number, skipTokens = 0): Promise<number> {
    const id = next++;
    await receiver.fetch(sender, { id, tokens, skipTokens });
    return id;
  }

  it.each([
    [1, 0],
    [31, 0],
    [32, 0],
    [33, 0],
    [150, 0],
    [150, 1],
    [150, 32],
    [150, 45],
    [150, 149],
    [150, 150],
    [POOL_TOKENS, 0],
  ])("%i tokens without the first %i arrive byte for byte, and nothing else is written", async (tokens, skipTokens) => {
    const id = await move(tokens, skipTokens);
    const received = await receiver.received(id);
    expect(received).toMatchObject({ wrong: 0, report: { tokens, bytes: (tokens - skipTokens) * BYTES_PER_TOKEN } });
    expect(await sender.sent(id)).toMatchObject({ report: { bytes: (tokens - skipTokens) * BYTES_PER_TOKEN } });
  });

  it("data is fetched while the prefill goes on, and progress rises to the end", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 200, ready: 64 });
    await receiver.receive({ id, state, tokens: 200 });
    await receiver.arrived(id, 64);
    await sender.call("ready", { request: id, tokens: 100 });
    await receiver.arrived(id, 100);
    await sender.call("ready", { request: id, tokens: 200 });
    const received = await receiver.received(id);
    expect(received).toMatchObject({ wrong: 0, seen: [64, 100, 200], report: { chunks: 3 } });
    expect(await sender.sent(id)).toHaveProperty("report");
  });

  it("the report says where the time went, and how many runs and copies it took", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 320, ready: 64 });
    await receiver.receive({ id, state, tokens: 320 });
    await receiver.arrived(id, 64);
    await sender.call("ready", { request: id, tokens: 320 });
    const { report } = await receiver.received(id);
    if (report === undefined) throw new Error("it failed");
    const { ms, queueMs, connectMs, waitMs, movingMs, verifyMs } = report;
    for (const part of [queueMs, connectMs, waitMs, movingMs, verifyMs]) expect(part).toBeGreaterThanOrEqual(0);
    // It waited at least for the second announcement, which the test sent after the first had arrived.
    expect(waitMs).toBeGreaterThan(0);
    expect(queueMs + connectMs + waitMs + movingMs + verifyMs).toBeLessThanOrEqual(ms + 0.001);
    // Blocks of a fresh hold are neighbours on both sides: they merge, in each of the two reads.
    expect(report).toMatchObject({ chunks: 2, runs: 2, pieces: 2, path: "shared_memory" });
  });

  it("64 at once all arrive, eight running, the others waiting for their turn", async () => {
    const ids = await Promise.all(Array.from({ length: 64 }, () => move(32)));
    const ends = await Promise.all(ids.map((id) => receiver.received(id)));
    for (const end of ends) expect(end).toMatchObject({ wrong: 0, report: { tokens: 32 } });
    await until("all blocks are free", async () => {
      const both = await Promise.all([sender.stats(), receiver.stats()]);
      return both.every(({ blocks }) => blocks.free === BLOCKS);
    });
    expect((await receiver.stats()).receives.open).toBe(0);
  });

  it("both directions at once between the same two processes", async () => {
    const there = await move(320);
    const back = next++;
    const { state } = await receiver.send({ request: back, tokens: 320 });
    await sender.receive({ id: back, state, tokens: 320 });
    expect(await receiver.received(there)).toMatchObject({ wrong: 0, report: { tokens: 320 } });
    expect(await sender.received(back)).toMatchObject({ wrong: 0, report: { tokens: 320 } });
  });

  it("what can't be fetched is refused with the code that says why", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 32 });
    await receiver.receive({ id, state, tokens: 32 });
    expect(await receiver.received(id)).toHaveProperty("report");
    await receiver.receive({ id, state, tokens: 32 });
    expect(await receiver.received(id)).toMatchObject({ code: "GONE" });
    const offer = decodeState((await sender.send({ request: next++, tokens: 32 })).state);
    const changed = {
      NO_OFFER: { requestId: requestId(999_999) },
      BAD_TOKEN: { ranks: offer.ranks.map((rank) => ({ ...rank, token: newToken() })) },
      STALE_EPOCH: { ranks: offer.ranks.map((rank) => ({ ...rank, epoch: newEpoch() })) },
      PEER_UNREACHABLE: {
        ranks: offer.ranks.map((rank) => ({ ...rank, epoch: newEpoch(), unix: null, tcp: "tcp://127.0.0.1:1" })),
      },
    };
    for (const [code, change] of Object.entries(changed)) {
      await receiver.receive({ id, state: encodeState({ ...offer, ...change }), tokens: 32 });
      expect(await receiver.received(id)).toMatchObject({ code });
    }
    await sender.call("cancelSend", { request: next - 1 });
    await expect(receiver.receive({ id, state: "bm9uc2Vuc2U=", tokens: 32 })).rejects.toThrow("BAD_STATE");
  });

  it("an offer that its state's holder released is over at once, and only once", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 32 });
    expect(await sender.call("release", { state })).toBe("cancelled");
    expect(await sender.call("release", { state })).toBe("already_complete");
    expect(await sender.sent(id)).toMatchObject({ code: "CANCELLED" });
    expect(await receiver.call("release", { state })).toBe("not_found");
  });

  it.each(["receiver", "sender"] as const)("a transfer that the %s cancels ends on both sides at once", async (who) => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 200, ready: 64 });
    await receiver.receive({ id, state, tokens: 200 });
    await receiver.arrived(id, 64);
    if (who === "receiver") await receiver.call("cancelReceive", { id });
    else expect(await sender.call("cancelSend", { request: id })).toBe("in_flight");
    const code = who === "receiver" ? "CANCELLED" : "SENDER_ABORTED";
    expect(await receiver.received(id)).toMatchObject({ code });
    expect(await sender.sent(id)).toMatchObject({ code: "CANCELLED" });
    await until("all blocks are free", async () => {
      const both = await Promise.all([sender.stats(), receiver.stats()]);
      return both.every(({ blocks, receives }) => blocks.free === BLOCKS && receives.open === 0);
    });
  });

  it("waitForSenders tells each ended send once, and gives up at its limit", async () => {
    await sender.call("waitForSenders", { atLeast: 1 });
    const id = await move(32);
    await receiver.received(id);
    expect(await sender.call("waitForSenders", { atLeast: 1 })).toMatchObject([{ code: null }]);
    const lonely = next++;
    await sender.send({ request: lonely, tokens: 32 });
    expect(await sender.call("waitForSenders", { atLeast: 1 })).toEqual([]);
    await sender.call("cancelSend", { request: lonely });
    expect(await sender.call("waitForSenders", { atLeast: 1 })).toMatchObject([{ code: "CANCELLED" }]);
  });

  it("drain lets open offers be fetched and takes no new one; close frees everything", async () => {
    const [other, fresh] = await Promise.all([peers.open(), peers.open()]);
    const { state } = await other.send({ request: 1, tokens: 96 });
    const drained = other.call("drain");
    await expect(other.send({ request: 2, tokens: 32 })).rejects.toThrow("DRAINING");
    await fresh.receive({ id: 1, state, tokens: 96 });
    expect(await fresh.received(1)).toMatchObject({ wrong: 0, report: { tokens: 96 } });
    await drained;
    expect(await other.call("close")).toMatchObject({ maps: 0 });
    await expect(other.send({ request: 3, tokens: 32 })).rejects.toThrow("CLOSED");
  });

  it("an idle process ends by itself, one with an open offer when the offer has ended", async () => {
    const options = { config: { kv_transfer_timeout_ms: 300 } };
    const idle = await peers.open();
    await idle.call("leave");
    await idle.exited;
    expect(idle.child.exitCode).toBe(0);
    const offering = await peers.open(options);
    await offering.send({ request: 1, tokens: 32 });
    const left = performance.now();
    await offering.call("leave");
    await offering.exited;
    expect(offering.child.exitCode).toBe(0);
    expect(performance.now() - left).toBeGreaterThan(200);
  });
});
