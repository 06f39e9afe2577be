import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { FrameSplitter } from "../../../src/transceiver/frame_channel.ts";
import { decodeReceiverFrame, FRAME_LIMIT } from "../../../src/transceiver/protocol.ts";
import { until } from "../waits.ts";
import { BLOCKS, type Peer, Peers } from "./peer_process.ts";
import { Wire } from "./wire.ts";

const LEASE_MS = 600;
const FAST = { lease: { leaseMs: LEASE_MS }, config: { kv_transfer_timeout_ms: 5_000 } };

const peers = new Peers();
afterAll(() => peers[Symbol.asyncDispose]());

async function allFree(...all: Peer[]): Promise<void> {
  await until("all blocks are free", async () => {
    const stats = await Promise.all(all.map((peer) => peer.stats()));
    return stats.every(({ blocks, receives }) => blocks.free === BLOCKS && receives.open === 0);
  });
}

describe("a read that its lease does not vouch for", () => {
  const STRICT = { ...FAST, lease: { leaseMs: LEASE_MS, strict: true } };

  it("is asked about, and counts when the lease is still held", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(STRICT)]);
    await receiver.arm({ role: "receiver", to: "READ", event: "pieceLate", say: true });
    const { state } = await sender.send({ request: 1, tokens: 300 });
    await receiver.receive({ id: 1, state, tokens: 300 });
    await receiver.reached("READ");
    expect(await receiver.received(1)).toMatchObject({ wrong: 0, report: { tokens: 300, attempts: 1 } });
    expect(await sender.sent(1)).toHaveProperty("report");
    await allFree(sender, receiver);
    await Promise.all([sender.kill(), receiver.kill()]);
  });

  it("is thrown away when its process was stopped until the lease had ended", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(STRICT)]);
    // Stopped in the step that is about to ask.
    await receiver.arm({ role: "receiver", to: "READ", event: "pieceLate", act: "SIGSTOP" });
    const { state } = await sender.send({ request: 1, tokens: 300 });
    await receiver.receive({ id: 1, state, tokens: 300 });
    expect(await sender.sent(1)).toMatchObject({ code: "LEASE_EXPIRED" });
    receiver.child.kill("SIGCONT");
    const ended = await receiver.received(1);
    expect(ended.report).toBeUndefined();
    expect(ended.code).toMatch(/^(GONE|SENDER_ABORTED|NO_OFFER|PEER_LOST)$/);
    await allFree(sender, receiver);
    await Promise.all([sender.kill(), receiver.kill()]);
  });
});

describe("a connection that is cut while both sides live", () => {
  let sender: Peer;
  let receiver: Peer;
  let wire: Wire;
  let next = 1;
  beforeAll(async () => {
    [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    wire = new Wire(sender.endpoints.tcp);
    await wire.open();
  });
  afterAll(() => wire.close());
  // The next pull connects anew.
  afterEach(() => wire.cut());

  it.each(["PULL", "GRANT", "DONE"])("in the place of a %s costs nothing but a new connection", async (word) => {
    const id = next++;
    const before = wire.connections;
    const { state } = await sender.send({ request: id, tokens: 300 });
    wire.cutAt = word;
    await receiver.receive({ id, state: wire.through(state), tokens: 300 });
    const attempts = word === "DONE" ? 1 : 2;
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens: 300, attempts } });
    await sender.sent(id);
    expect(wire.connections - before).toBeGreaterThanOrEqual(word === "DONE" ? 1 : 2);
    await allFree(sender, receiver);
  });

  it("while data is still computed is followed by a new attempt, which fetches it all", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 300, ready: 64 });
    await receiver.receive({ id, state: wire.through(state), tokens: 300 });
    await receiver.arrived(id, 64);
    wire.cut();
    await sender.call("ready", { request: id, tokens: 300 });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens: 300, attempts: 2 } });
    expect(await sender.sent(id)).toHaveProperty("report");
    await allFree(sender, receiver);
  });
});

it("a receiver's renewals count up over all its links to one sender, so that an old answer never fits a new question", async () => {
  const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
  const splitter = { current: new FrameSplitter() };
  const seqs: number[] = [];
  const wire = new Wire(sender.endpoints.tcp, (bytes) => {
    for (const frame of splitter.current.push(bytes, FRAME_LIMIT)) {
      const decoded = decodeReceiverFrame(frame as Uint8Array);
      if (decoded.ok && decoded.frame.type === "RENEW") seqs.push(decoded.frame.seq);
    }
  });
  await wire.open();
  for (let id = 1; id <= 3; id++) {
    const before = seqs.length;
    const { state } = await sender.send({ request: id, tokens: 64, ready: 32 });
    await receiver.receive({ id, state: wire.through(state), tokens: 64 });
    await until("two renewals", async () => seqs.length >= before + 2);
    await sender.call("ready", { request: id, tokens: 64 });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens: 64 } });
    await sender.sent(id);
    // Idle and cut, the link is forgotten: the next pull makes a new one.
    wire.cut();
    splitter.current = new FrameSplitter();
    await until("the link is gone", async () => (await receiver.stats()).peers.length === 0);
  }
  expect(seqs).toEqual([...new Set(seqs)].sort((one, other) => one - other));
  wire.close();
  await Promise.all([sender.kill(), receiver.kill()]);
});
