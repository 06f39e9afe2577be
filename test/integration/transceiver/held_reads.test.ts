import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { BLOCKS, type Peer, Peers, until } from "./peer_process.ts";
import { Wire } from "./wire.ts";

const config = { kv_transfer_timeout_ms: 20_000 };
/** Long against what a step takes on a busy machine, as these reads must end inside it. */
const SLOW = { lease: { leaseMs: 9_000 }, config };
const SHORT_LEASE_MS = 600;
const FAST = { lease: { leaseMs: SHORT_LEASE_MS }, config: { kv_transfer_timeout_ms: 5_000 } };
const TOKENS = 300;
const complete = { wrong: 0, report: { tokens: TOKENS, attempts: 1 } };

const peers = new Peers();
afterAll(() => peers[Symbol.asyncDispose]());

let sender: Peer;
let receiver: Peer;
const open = async (options: typeof SLOW): Promise<void> => {
  [sender, receiver] = await Promise.all([peers.open(options), peers.open(options)]);
};
afterEach(async () => {
  await Promise.all([sender, receiver].filter((peer) => peer.running).map((peer) => peer.kill()));
});

/** A pull whose read has been posted, and does not end until the test lets it. */
async function holdRead(through: (state: string) => string = (state) => state): Promise<void> {
  const { state } = await sender.send({ request: 1, tokens: TOKENS });
  await receiver.call("holdReads");
  await receiver.arm({ role: "receiver", to: "POSTED", say: true });
  await receiver.receive({ id: 1, state: through(state), tokens: TOKENS });
  await receiver.reached("POSTED");
}

const letReadsEnd = (): Promise<void> => receiver.call("letReadsEnd");

/** Resolves when the receiver has come to that state by that event. */
async function inState(
  to: "READ" | "FINISH" | "ORPHAN" | "RETRY",
  event: string,
  bringAbout: () => unknown,
): Promise<void> {
  await receiver.arm({ role: "receiver", to, event, say: true });
  await bringAbout();
  await receiver.reached(to);
}

async function allFree(...all: Peer[]): Promise<void> {
  await until("all blocks are free", async () => {
    const stats = await Promise.all(all.map((peer) => peer.stats()));
    return stats.every(({ blocks, receives }) => blocks.free === BLOCKS && receives.open === 0);
  });
}

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

describe("ORPHAN: the sender is dead, and its lease was held", () => {
  beforeEach(() => open(SLOW));

  it.each(ends)("a sender that is %s while all is posted: the read counts", async (_how, end) => {
    await holdRead();
    await inState("ORPHAN", "senderDead", end);
    await letReadsEnd();
    expect(await receiver.received(1)).toMatchObject(complete);
    await allFree(receiver);
  });
});

describe("LATE, without STRICT: a read ends when its lease is no longer sure", () => {
  beforeEach(async () => {
    await open(FAST);
    await holdRead();
  });

  const passed = async (ms: number): Promise<void> => {
    const from = performance.now();
    await until(`${ms} ms have passed`, async () => performance.now() - from > ms);
  };

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
