import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { BLOCKS, type Peer, Peers } from "./peer_process.ts";

const INTERVAL_MS = 3_000;
/**
 * A thread that spins takes all of a core, or its share of it among many others on a busy machine; one that polls once a millisecond wakes
 * 3,000 times. What is idle spends one millisecond and wakes once to answer this test; V8 may tidy up meanwhile.
 */
const CPU_MS = 100;
const WAKES = 100;

interface Effort {
  readonly cpuMs: number;
  readonly wakes: number;
}

/** What the process spends while the interval passes. */
async function spent(peer: Peer): Promise<Effort> {
  const before = await peer.call<Effort>("effort");
  const from = performance.now();
  await until("the interval has passed", () => performance.now() - from > INTERVAL_MS);
  const after = await peer.call<Effort>("effort");
  return { cpuMs: after.cpuMs - before.cpuMs, wakes: after.wakes - before.wakes };
}

const expectRest = ({ cpuMs, wakes }: Effort): void => {
  expect(cpuMs).toBeLessThan(CPU_MS);
  expect(wakes).toBeLessThan(WAKES);
};

describe("an open transceiver with no lease out sleeps", () => {
  const peers = new Peers();
  afterAll(() => peers[Symbol.asyncDispose]());
  let sender: Peer;
  let receiver: Peer;
  beforeEach(async () => {
    [sender, receiver] = await Promise.all([peers.open({}, false), peers.open({}, false)]);
  });
  afterEach(async () => {
    await Promise.all([sender.kill(), receiver.kill()]);
  });

  it("before any transfer", async () => {
    for (const effort of await Promise.all([spent(sender), spent(receiver)])) expectRest(effort);
  });

  it("with an offer that nobody has asked for", async () => {
    await sender.send({ request: 1, tokens: 300 });
    expectRest(await spent(sender));
  });

  it("after a transfer, while the two stay connected and mapped", async () => {
    const { state } = await sender.send({ request: 1, tokens: 300 });
    await receiver.receive({ id: 1, state, tokens: 300 });
    expect(await receiver.received(1)).toMatchObject({ wrong: 0, report: { tokens: 300 } });
    await sender.sent(1);
    await until("all blocks are free", async () => {
      const all = await Promise.all([sender.stats(), receiver.stats()]);
      return all.every(({ blocks }) => blocks.free === BLOCKS);
    });
    for (const effort of await Promise.all([spent(sender), spent(receiver)])) expectRest(effort);
  });
});
