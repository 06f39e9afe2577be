import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { until } from "../waits.ts";
import { BLOCKS, layout, type Peer, Peers, stopped } from "./peer_process.ts";
import { Wire } from "./wire.ts";

const config = { kv_transfer_timeout_ms: 20_000 };
/** Digests that a cut has lost would cost another attempt: the states of verification are tests of their own. */
const verify = "off";
/** Long against what a step takes on a busy machine, as these reads must end inside it. */
const SLOW = { lease: { leaseMs: 9_000 }, config, verify } as const;
const SHORT_LEASE_MS = 600;
const FAST = { lease: { leaseMs: SHORT_LEASE_MS }, config: { kv_transfer_timeout_ms: 5_000 }, verify } as const;
/** Long enough for a death to be seen inside it, short enough to be waited for. */
const MIDDLE = { lease: { leaseMs: 2_500 }, config, verify } as const;
const TOKENS = 300;
/** Of them are computed. */
const PART = 128;
const complete = { wrong: 0, report: { tokens: TOKENS, attempts: 1 } };

const peers = new Peers();
afterAll(() => peers[Symbol.asyncDispose]());

let sender: Peer;
let receiver: Peer;
const open = async (options: Partial<OpenOptions>): Promise<void> => {
  [sender, receiver] = await Promise.all([peers.open(options), peers.open(options)]);
};
afterEach(async () => {
  await Promise.all([sender, receiver].filter((peer) => peer.running).map((peer) => peer.kill()));
});

/** A pull whose read has been posted, and does not end until the test lets it. */
async function holdRead(through: (state: string) => string = (state) => state): Promise<void> {
  const { state } = await sender.send({ request: 1, tokens: TOKENS });
  await receiver.call("hold", { state: "READ" });
  await receiver.arm({ role: "receiver", to: "POSTED", say: true });
  await receiver.receive({ id: 1, state: through(state), tokens: TOKENS });
  await receiver.reached("POSTED");
}

const letReadsEnd = (): Promise<void> => receiver.call("letGo");

/** Resolves when the receiver has come to that state by that event. */
async function inState(
  to: "READ" | "FINISH" | "ORPHAN" | "RETRY" | "DRAIN",
  event: string,
  bringAbout: () => unknown,
): Promise<void> {
  await receiver.arm({ role: "receiver", to, event, say: true });
  await bringAbout();
  await receiver.reached(to);
}

/** The receiver stops itself in the step that leads to this state, and is awakened by the caller. */
async function stopsIn(to: "FINISH" | "ORPHAN", event: string, bringAbout: () => unknown): Promise<void> {
  await receiver.arm({ role: "receiver", to, event, act: "SIGSTOP" });
  await bringAbout();
  await stopped(receiver);
}

const passed = async (ms: number): Promise<void> => {
  const from = performance.now();
  await until(`${ms} ms have passed`, async () => performance.now() - from > ms);
};

async function allFree(...all: Peer[]): Promise<void> {
  await until("all blocks are free", async () => {
    const stats = await Promise.all(all.map((peer) => peer.stats()));
    return stats.every(({ blocks, receives }) => blocks.free === BLOCKS && receives.open === 0);
  });
}

/** What becomes of a pull whose read is not believed: another attempt finds nothing. */
const thrownAway = { code: expect.stringMatching(/^(GONE|SENDER_ABORTED|NO_OFFER|PEER_LOST)$/) };

const ends = [
  ["killed", () => sender.kill()],
  ["gone by itself", () => void sender.call("exit")],
] as const;

describe("FINISH: the connection is gone and every read is posted", () => {
  let wire: Wire;
  beforeEach(async () => {
    await open(SLOW);
    wire = new Wire(sender.endpoints.tcp);
    await wire.open();
    await holdRead((state) => wire.through(state));
    await inState("FINISH", "linkLostAllPosted", () => wire.cut());
  });
  afterEach(() => wire.close());

  it("after a cut the read ends inside the lease and counts, and the sender is told", async () => {
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    expect(await sender.sent(1)).toHaveProperty("report");
    await allFree(sender, receiver);
  });

  it("a sender that is stopped then changes nothing, and has its blocks back when it is resumed", async () => {
    sender.child.kill("SIGSTOP");
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    sender.child.kill("SIGCONT");
    await sender.sent(1);
    await allFree(sender, receiver);
  });

  it.each(ends)(
    "a sender that is %s then leaves its blocks as they are: ORPHAN, and the read counts",
    async (_how, end) => {
      await inState("ORPHAN", "senderDead", end);
      await letReadsEnd();
      expect(await receiver.received(1)).toMatchObject(complete);
      await allFree(receiver);
    },
  );

  it("a receiver that is killed then costs the sender its lease, and no block", async () => {
    await receiver.kill();
    expect(await sender.sent(1)).toMatchObject({ code: "LEASE_EXPIRED" });
    await allFree(sender);
  });
});

describe("FINISH: the receiver is stopped in it", () => {
  let wire: Wire;
  const stopInFinish = async (options: Partial<OpenOptions>): Promise<void> => {
    await open(options);
    wire = new Wire(sender.endpoints.tcp);
    await wire.open();
    await holdRead((state) => wire.through(state));
    await stopsIn("FINISH", "linkLostAllPosted", () => wire.cut());
  };
  const awake = (): void => void receiver.child.kill("SIGCONT");
  afterEach(() => wire.close());

  it("and awake again inside the lease: its read counts, and the sender is told", async () => {
    await stopInFinish(SLOW);
    awake();
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    expect(await sender.sent(1)).toHaveProperty("report");
    await allFree(sender, receiver);
  });

  it("for longer than the lease: the sender has its blocks back meanwhile, and the read is thrown away", async () => {
    await stopInFinish(FAST);
    expect(await sender.sent(1)).toMatchObject({ code: "LEASE_EXPIRED" });
    await until("the sender's blocks are free", async () => (await sender.stats()).blocks.free === BLOCKS);
    awake();
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(thrownAway);
    await allFree(sender, receiver);
  });

  it("while the sender is killed, and awake again inside the lease: nobody can have changed the blocks, the read counts", async () => {
    await stopInFinish(SLOW);
    await sender.kill();
    awake();
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    await allFree(receiver);
  });

  it("while the sender is killed, and awake again after the lease: it may have given the blocks away first, the read is thrown away", async () => {
    await stopInFinish(FAST);
    await sender.kill();
    await passed(SHORT_LEASE_MS);
    awake();
    expect(await receiver.received(1)).toMatchObject({ code: "PEER_LOST" });
    // Nothing is free before the read has ended.
    expect((await receiver.stats()).blocks).toMatchObject({ free: BLOCKS - Math.ceil(TOKENS / layout.tokensPerBlock) });
    await letReadsEnd();
    await allFree(receiver);
  });
});

describe("ORPHAN: the sender is dead, and its lease was held", () => {
  beforeEach(() => open(SLOW));

  it.each(ends)("a sender that is %s while all is posted: the read counts", async (_how, end) => {
    await holdRead();
    await inState("ORPHAN", "senderDead", end);
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    await allFree(receiver);
  });

  it("a receiver that is stopped then for longer than the lease takes the read all the same: the dead change nothing", async () => {
    await Promise.all([sender.kill(), receiver.kill()]);
    await open(MIDDLE);
    await holdRead();
    await stopsIn("ORPHAN", "senderDead", () => sender.kill());
    await passed(MIDDLE.lease.leaseMs);
    receiver.child.kill("SIGCONT");
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    await allFree(receiver);
  });
});

describe("ORPHAN, and the sender had not computed all: its death is seen before the end of its connection", () => {
  let wire: Wire;
  let state: string;
  beforeEach(async () => {
    await open(SLOW);
    wire = new Wire(sender.endpoints.tcp);
    await wire.open();
    wire.hidesEnds = true;
    state = wire.through((await sender.send({ request: 1, tokens: TOKENS, ready: PART })).state);
  });
  afterEach(() => wire.close());

  it.each(ends)(
    "a sender that is %s when all that was ready had been read: the rest never comes",
    async (_how, end) => {
      await receiver.receive({ id: 1, state, tokens: TOKENS });
      await receiver.arrived(1, PART);
      await inState("DRAIN", "orphanShort", end);
      expect(await receiver.received(1)).toMatchObject({ code: "PEER_LOST" });
      await allFree(receiver);
    },
  );

  it.each(ends)(
    "a sender that is %s while that is still read: it ends when the read does, not before",
    async (_how, end) => {
      await receiver.call("hold", { state: "READ" });
      await receiver.arm({ role: "receiver", to: "POSTED", say: true });
      await receiver.receive({ id: 1, state, tokens: TOKENS });
      await receiver.reached("POSTED");
      await inState("ORPHAN", "senderDead", end);
      await inState("DRAIN", "orphanShort", letReadsEnd);
      expect(await receiver.received(1)).toMatchObject({ code: "PEER_LOST", seen: [PART] });
      await allFree(receiver);
    },
  );
});

describe("LATE, without STRICT: a read ends when its lease is no longer sure", () => {
  beforeEach(async () => {
    await open(FAST);
    await holdRead();
  });

  it("a sender that lives is asked: the lease is held, the read counts", async () => {
    // Longer than a third of the lease, which is renewed meanwhile.
    await passed(SHORT_LEASE_MS / 2);
    await inState("READ", "pieceLate", letReadsEnd);
    expect(await receiver.received(1)).toMatchObject(complete);
    expect(await sender.sent(1)).toHaveProperty("report");
    await allFree(sender, receiver);
  });

  it("a sender that was stopped until its lease had ended says so: the read is thrown away", async () => {
    // Its silence closes the connection: FINISH, where nobody can be asked.
    await inState("FINISH", "linkLostAllPosted", () => sender.child.kill("SIGSTOP"));
    await passed(SHORT_LEASE_MS);
    await inState("RETRY", "pieceLate", letReadsEnd);
    sender.child.kill("SIGCONT");
    // A new attempt finds what the old lease has left: nothing.
    expect((await receiver.received(1)).code).toMatch(/^(GONE|SENDER_ABORTED|NO_OFFER|PEER_LOST)$/);
    expect(await sender.sent(1)).toMatchObject({ code: "LEASE_EXPIRED" });
    await allFree(sender, receiver);
  });

  it("a sender that is killed before it could answer: nothing says that the lease was held, the read is thrown away", async () => {
    // Its silence closes the connection: FINISH, where nobody can be asked.
    await inState("FINISH", "linkLostAllPosted", () => sender.child.kill("SIGSTOP"));
    await passed(SHORT_LEASE_MS);
    await inState("RETRY", "pieceLate", letReadsEnd);
    await sender.kill();
    expect(await receiver.received(1)).toMatchObject({
      code: expect.stringMatching(/^(PEER_LOST|PEER_UNREACHABLE|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/),
    });
    await allFree(receiver);
  });
});
