import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { BLOCKS, type Peer, Peers } from "./peer_process.ts";
import { Wire } from "./wire.ts";

const TOKENS = 300;

/** An unfetched offer stands for 60 s, so that nothing here ends by a timer. */
describe("a pull that is cancelled before it has asked", () => {
  const peers = new Peers();
  let sender: Peer;
  let receiver: Peer;
  beforeEach(async () => {
    [sender, receiver] = await Promise.all([peers.open(), peers.open({ maxConcurrentPulls: 1 })]);
  }, 60_000);
  afterEach(() => Promise.all([sender.kill(), receiver.kill()]));
  afterAll(() => peers[Symbol.asyncDispose]());

  async function expectDeclined(id: number): Promise<void> {
    expect(await sender.sent(id)).toMatchObject({ code: "CANCELLED", message: expect.stringMatching(/receiver/) });
    await until("the offer's blocks are free", async () => {
      const { blocks, sends } = await sender.stats();
      return blocks.free === BLOCKS && sends.open === 0;
    });
    const { blocks, receives } = await receiver.stats();
    expect(blocks.free).toBe(BLOCKS);
    expect(receives.open).toBe(0);
  }

  it("tells the sender once it is connected, and holds nothing until then", async () => {
    const { state } = await sender.send({ request: 1, tokens: TOKENS });
    sender.child.kill("SIGSTOP");
    await receiver.receive({ id: 1, state, tokens: TOKENS });
    expect(await receiver.call("cancelReceive", { id: 1 })).toBe("cancelled");
    expect((await receiver.received(1)).code).toBe("CANCELLED");
    expect((await receiver.stats()).blocks.free).toBe(BLOCKS);
    sender.child.kill("SIGCONT");
    await expectDeclined(1);
  });

  it("tells the sender too when it waited for its turn, and the others are served", async () => {
    const first = await sender.send({ request: 1, tokens: TOKENS });
    const second = await sender.send({ request: 2, tokens: TOKENS });
    sender.child.kill("SIGSTOP");
    await receiver.receive({ id: 1, state: first.state, tokens: TOKENS });
    await receiver.receive({ id: 2, state: second.state, tokens: TOKENS });
    expect((await receiver.stats()).receives.waiting).toBe(1);
    await receiver.call("cancelReceive", { id: 2 });
    expect((await receiver.received(2)).code).toBe("CANCELLED");
    sender.child.kill("SIGCONT");
    expect(await receiver.received(1)).toMatchObject({ wrong: 0, report: { tokens: TOKENS } });
    await expectDeclined(2);
  });

  it("need not have begun: a state is declined over a new connection and over one that stands", async () => {
    for (const id of [1, 2]) {
      const { state } = await sender.send({ request: id, tokens: TOKENS });
      await receiver.call("decline", { state });
      await expectDeclined(id);
    }
    const { state } = await sender.send({ request: 3, tokens: TOKENS });
    await receiver.receive({ id: 3, state, tokens: TOKENS });
    expect(await receiver.received(3)).toMatchObject({ wrong: 0, report: { tokens: TOKENS } });
  });

  it.each(["PULL", "GRANT"])(
    "or has lost its %s with its connection, and waits to ask again: the blocks are free with the next one",
    async (word) => {
      const wire = new Wire(sender.endpoints.tcp);
      await wire.open();
      const { state } = await sender.send({ request: 1, tokens: TOKENS });
      await receiver.arm({ role: "receiver", to: "RETRY", say: true });
      wire.cutAt = word;
      wire.holdsAfterCut = true;
      await receiver.receive({ id: 1, state: wire.through(state), tokens: TOKENS });
      await receiver.reached("RETRY");
      expect(await receiver.call("cancelReceive", { id: 1 })).toBe("cancelled");
      expect((await receiver.received(1)).code).toBe("CANCELLED");
      expect((await receiver.stats()).blocks.free).toBe(BLOCKS);
      wire.letThrough();
      await expectDeclined(1);
      wire.close();
    },
  );

  it("leaves an offer alone that another receiver reads", async () => {
    const other = await peers.open();
    const { state } = await sender.send({ request: 1, tokens: TOKENS });
    await other.arm({ role: "receiver", to: "READ", event: "granted", act: "SIGSTOP" });
    void other.call("receive", { id: 1, state, tokens: TOKENS });
    await until("it is granted", async () => (await sender.stats()).sends.leased === 1);
    await receiver.call("decline", { state });
    await until("it is refused", async () => (await receiver.stats()).dropped["REFUSE of no attempt"] === 1);
    other.child.kill("SIGCONT");
    expect(await other.received(1)).toMatchObject({ wrong: 0, report: { tokens: TOKENS } });
    expect(await sender.sent(1)).toHaveProperty("report");
    await other.kill();
  });
});

describe("a pull that is cancelled when its sender has granted it", () => {
  const peers = new Peers();
  let sender: Peer;
  let receiver: Peer;
  beforeAll(async () => {
    [sender, receiver] = await Promise.all([peers.open(), peers.open({ verify: "full" })]);
  });
  afterAll(() => peers[Symbol.asyncDispose]());
  const free = async (peer: Peer): Promise<number> => (await peer.stats()).blocks.free;

  it.each([
    ["READ", 1],
    ["VERIFY", 2],
    ["RETRY", 3],
  ] as const)(
    "in %s: both sides' blocks are free when no read touches them, and the next one is right",
    async (state, id) => {
      await receiver.call("hold", { state });
      await receiver.arm({ role: "receiver", to: state, say: true });
      await receiver.fetch(sender, { id, tokens: TOKENS });
      await receiver.reached(state);
      expect(Math.max(await free(sender), await free(receiver))).toBeLessThan(BLOCKS);
      expect(await receiver.call("cancelReceive", { id })).toBe(state === "VERIFY" ? "cancelled" : "in_flight");
      expect(await sender.sent(id)).toMatchObject({ code: expect.stringMatching(/CANCELLED|RECEIVER_FAILED/) });
      // No timer: the lease, and the limit of an offer, are 10 s and more.
      await until("the sender's blocks are free", async () => (await free(sender)) === BLOCKS, 5_000);
      await receiver.call("letGo");
      expect((await receiver.received(id)).code).toBe("CANCELLED");
      await until("the receiver's blocks are free", async () => (await free(receiver)) === BLOCKS, 5_000);
      await receiver.fetch(sender, { id: id + 10, tokens: TOKENS });
      expect(await receiver.received(id + 10)).toMatchObject({ wrong: 0, report: { tokens: TOKENS, attempts: 1 } });
      expect(await sender.sent(id + 10)).toHaveProperty("report");
    },
  );
});
