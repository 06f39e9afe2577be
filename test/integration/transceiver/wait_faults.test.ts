import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { BLOCKS, type Peer, Peers } from "./peer_process.ts";
import { Wire } from "./wire.ts";

const LEASE_MS = 600;
const FAST = { lease: { leaseMs: LEASE_MS }, config: { kv_transfer_timeout_ms: 3_000 } };
const TOKENS = 300;
const FIRST = { firstTokens: [5], firstLogProbs: [{ logprob: -0.25 }] };

const peers = new Peers();
afterAll(() => peers[Symbol.asyncDispose]());

const waits = async (peer: Peer, count = 1): Promise<unknown> =>
  until(`${count} pulls wait`, async () => (await peer.stats()).sends.waiting === count);

async function expectNothingLeft(...all: Peer[]): Promise<void> {
  await until("nothing is left", async () => {
    const stats = await Promise.all(all.map((peer) => peer.stats()));
    return stats.every(
      ({ blocks, sends, receives }) =>
        blocks.free === BLOCKS && sends.open === 0 && sends.waiting === 0 && receives.open === 0,
    );
  });
}

/** The sender's side of a prefill in three chunks. */
async function prefill(sender: Peer, id: number): Promise<void> {
  await sender.send({ request: id, tokens: TOKENS, ready: 0 });
  await sender.call("ready", { request: id, tokens: 100 });
  await sender.call("ready", { request: id, tokens: 200 });
  await sender.call("finish", { request: id, first: FIRST });
}

const complete = { wrong: 0, report: { tokens: TOKENS, first: FIRST } };

describe("a pull that waits for its offer", () => {
  let next = 1;

  it("is dropped by its own timer when the receiver was killed, and holds nothing", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    await receiver.receiveFrom(sender.infoEndpoints, { id: next, tokens: TOKENS });
    await waits(sender);
    await receiver.kill();
    expect((await sender.stats()).blocks.free).toBe(BLOCKS);
    await waits(sender, 0);
    await sender.kill();
  });

  it("of a killed receiver costs an offer made meanwhile one lease", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await receiver.kill();
    await prefill(sender, id);
    expect((await sender.sent(id)).code).toBe("LEASE_EXPIRED");
    await expectNothingLeft(sender);
    await sender.kill();
  });

  it("of a receiver that was stopped for longer than a lease goes on when it is resumed, with the right bytes or none", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    // Stopped in the step that asks.
    await receiver.arm({ role: "receiver", to: "READ", event: "granted", act: "SIGSTOP" });
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await prefill(sender, id);
    expect((await sender.sent(id)).code).toBe("LEASE_EXPIRED");
    receiver.child.kill("SIGCONT");
    const ended = await receiver.received(id);
    expect(ended.code).toMatch(/^(GONE|SENDER_ABORTED|PEER_LOST|NO_OFFER|QUEUE_TIMEOUT)$/);
    await expectNothingLeft(sender, receiver);
    await Promise.all([sender.kill(), receiver.kill()]);
  });

  it("ends at once when its sender is killed", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await sender.kill();
    expect((await receiver.received(id)).code).toMatch(/^(PEER_LOST|PEER_UNREACHABLE)$/);
    await expectNothingLeft(receiver);
    await receiver.kill();
  });

  it("ends when its sender is killed in the middle of the prefill: without the first token there is nothing to complete", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await sender.send({ request: id, tokens: TOKENS });
    await receiver.arrived(id, TOKENS);
    await sender.kill();
    expect((await receiver.received(id)).code).toMatch(/^(PEER_LOST|PEER_UNREACHABLE)$/);
    await expectNothingLeft(receiver);
    await receiver.kill();
  });

  it("completes when its sender is killed after FINISHED: the mapped blocks stay as they are", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await receiver.arm({ role: "receiver", to: "READ", event: "finished", act: "SIGKILL", pid: sender.pid });
    await prefill(sender, id).catch(() => undefined);
    expect(await receiver.received(id)).toMatchObject(complete);
    await expectNothingLeft(receiver);
    await receiver.kill();
  });

  it("outlives a stop of its sender: asked again, it waits again", async () => {
    const [sender, receiver] = await Promise.all([peers.open(FAST), peers.open(FAST)]);
    const id = next++;
    await receiver.receiveFrom(sender.infoEndpoints, { id, tokens: TOKENS });
    await waits(sender);
    await receiver.arm({ role: "receiver", to: "RETRY", say: true });
    sender.child.kill("SIGSTOP");
    await receiver.reached("RETRY");
    sender.child.kill("SIGCONT");
    await waits(sender);
    await prefill(sender, id);
    expect(await receiver.received(id)).toMatchObject(complete);
    expect(await sender.sent(id)).toHaveProperty("report");
    await expectNothingLeft(sender, receiver);
    await Promise.all([sender.kill(), receiver.kill()]);
  });
});

describe("the connection of a pull that waits is cut", () => {
  const secret = () => ({
    ...FAST,
    authToken: "secret",
    // No common directory: over TCP, proven by the secret.
    socketDir: mkdtempSync(join(peers.socketDir, "apart-")),
  });
  let sender: Peer;
  let receiver: Peer;
  let wire: Wire;
  let endpoints: readonly string[];
  let next = 100;
  beforeAll(async () => {
    [sender, receiver] = await Promise.all([peers.open(secret()), peers.open(secret())]);
    wire = new Wire(sender.endpoints.tcp);
    const address = await wire.open();
    endpoints = sender.infoEndpoints.map((endpoint) => endpoint.replace(sender.endpoints.tcp, address));
  });
  afterAll(() => wire.close());
  afterEach(() => wire.cut());

  it.each(["PULL", "RENEW", "RENEWED"])("in the place of a %s: it is made anew and waits on", async (word) => {
    const id = next++;
    const before = wire.connections;
    wire.cutAt = word;
    await receiver.receiveFrom(endpoints, { id, tokens: TOKENS });
    await until("a second connection", async () => wire.connections - before >= 2);
    await waits(sender);
    await prefill(sender, id);
    expect(await receiver.received(id)).toMatchObject(complete);
    expect(await sender.sent(id)).toHaveProperty("report");
    await expectNothingLeft(sender, receiver);
  });

  it.each(["GRANT", "FINISHED"])(
    "in the place of a %s: the next attempt gets it all, and token 0 again",
    async (word) => {
      const id = next++;
      await receiver.receiveFrom(endpoints, { id, tokens: TOKENS });
      await waits(sender);
      wire.cutAt = word;
      await prefill(sender, id);
      const ended = await receiver.received(id);
      expect(ended).toMatchObject(complete);
      expect(ended.report?.attempts).toBe(2);
      expect(await sender.sent(id)).toHaveProperty("report");
      await expectNothingLeft(sender, receiver);
    },
  );
});
