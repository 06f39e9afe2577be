import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { expectAsBefore, type Resources, resourcesOf } from "../held_resources.ts";
import { until } from "../waits.ts";
import { BLOCKS, type Fault, type Peer, Peers, POOL_TOKENS, stopped } from "./peer_process.ts";

const LEASE_MS = 2_000;
const TIMEOUT_MS = 3_000;
const FAST = { lease: { leaseMs: LEASE_MS }, config: { kv_transfer_timeout_ms: TIMEOUT_MS } };
/** The longest that any side may need to notice: queue limit, then a lease, on a slow machine. */
const LIMIT_MS = TIMEOUT_MS + 2 * LEASE_MS + 3_000;

/**
 * One side lives through all of these faults; the other is a new process each time, which the fault hits in the state that is named. After
 * each the survivor must have ended with one of the codes, and be as if nothing had been: every block served again, nothing left mapped.
 */
describe("a peer that is killed, stopped or gone in a state of a transfer", () => {
  const peers = new Peers();
  let survivor: Peer;
  let before: Resources;
  let next = 1;
  beforeAll(async () => {
    survivor = await peers.open(FAST);
    // A first transfer each way loads what is loaded once.
    await expectNoLeak(await peers.open(FAST));
    await settled();
    before = resourcesOf(survivor);
  });
  afterAll(() => peers[Symbol.asyncDispose]());
  // A test that failed must not leave its peer behind for the next one to count.
  afterEach(() => peers.killAllBut(survivor));

  /** Nothing is open and no peer is connected or mapped. */
  async function settled(): Promise<void> {
    await until("everything has ended", async () => {
      const { blocks, sends, receives, peers: known } = await survivor.stats();
      return blocks.free === BLOCKS && sends.open === 0 && receives.open === 0 && known.length === 0;
    });
  }

  /** The words: one request that needs every block is served, and a fresh peer pulls. Both ways. */
  async function expectNoLeak(fresh: Peer): Promise<void> {
    const id = next++;
    const { state } = await survivor.send({ request: id, tokens: POOL_TOKENS });
    await fresh.receive({ id, state, tokens: POOL_TOKENS });
    expect(await fresh.received(id)).toMatchObject({ wrong: 0, report: { tokens: POOL_TOKENS } });
    await survivor.sent(id);
    const back = await fresh.send({ request: id, tokens: POOL_TOKENS });
    await survivor.receive({ id, state: back.state, tokens: POOL_TOKENS });
    expect(await survivor.received(id)).toMatchObject({ wrong: 0, report: { tokens: POOL_TOKENS } });
    await fresh.call("close");
    await fresh.kill();
  }

  async function expectNothingLeft(): Promise<void> {
    await settled();
    await expectNoLeak(await peers.open(FAST));
    await settled();
    await expectAsBefore("the survivor", survivor, before);
    expect((await survivor.stats()).dropped).not.toHaveProperty("broken frame");
    expect(survivor.log).toBe("");
  }

  async function within<Value>(promise: Promise<Value>): Promise<Value> {
    const started = performance.now();
    const value = await promise;
    expect(performance.now() - started).toBeLessThan(LIMIT_MS);
    return value;
  }

  type Case = {
    readonly fault: Fault;
    readonly ready?: number;
    /** The receiver believes only a lease that a renewal confirms. */
    readonly strict?: boolean;
    readonly codes: RegExp;
  };
  /** A stopped process wakes up after its own limits too: whichever it looks at first ends the transfer. */
  const RESUMED = /^(COMPLETE|GONE|NO_OFFER|PEER_LOST|SENDER_ABORTED|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/;
  /** Killed and stopped; `exit` beside them where the orderly end of the process takes another way. */
  const everyAct = (cases: readonly Case[]): Case[] =>
    cases.flatMap((one) =>
      (one.fault.event === "pieceAccepted" || one.fault.event === "progress"
        ? (["SIGKILL", "SIGSTOP", "exit"] as const)
        : (["SIGKILL", "SIGSTOP"] as const)
      ).map((act) => ({ ...one, fault: { ...one.fault, act } })),
    );

  const receiverFaults: Case[] = [
    { fault: { role: "receiver", to: "CONNECTING" }, codes: /^OFFER_EXPIRED$/ },
    { fault: { role: "receiver", to: "PULL" }, codes: /^OFFER_EXPIRED$/ },
    { fault: { role: "receiver", to: "READ", event: "granted" }, codes: /^LEASE_EXPIRED$/ },
    { fault: { role: "receiver", to: "READ", event: "ready" }, ready: 64, codes: /^LEASE_EXPIRED$/ },
    { fault: { role: "receiver", to: "READ", event: "pieceAccepted" }, ready: 64, codes: /^LEASE_EXPIRED$/ },
    { fault: { role: "receiver", to: "READ", event: "renewed" }, ready: 64, codes: /^LEASE_EXPIRED$/ },
    { fault: { role: "receiver", to: "READ", event: "pieceLate" }, strict: true, codes: /^LEASE_EXPIRED$/ },
    { fault: { role: "receiver", to: "DRAIN" }, codes: /^LEASE_EXPIRED$/ },
  ];
  it.each(everyAct(receiverFaults))(
    "the receiver in $fault.to by $fault.event, $fault.act: the sender ends in time and has its blocks back",
    async ({ fault, ready, strict = false, codes }) => {
      const victim = await peers.open({ ...FAST, lease: { ...FAST.lease, strict } });
      const id = next++;
      const { state } = await survivor.send({ request: id, tokens: 300, ...(ready === undefined ? {} : { ready }) });
      await victim.arm(fault);
      // The victim may not live to answer.
      void victim.call("receive", { id, state, tokens: 300 });
      if (fault.event === "ready") {
        await victim.arrived(id, 64);
        await survivor.call("ready", { request: id, tokens: 100 });
      }
      expect((await within(survivor.sent(id))).code).toMatch(codes);
      if (fault.act === "SIGSTOP") {
        await stopped(victim);
        victim.child.kill("SIGCONT");
        expect((await within(victim.received(id))).code ?? "COMPLETE").toMatch(RESUMED);
      }
      await victim.kill();
      await expectNothingLeft();
    },
  );

  const senderFaults: Case[] = [
    {
      fault: { role: "sender", to: "GRANT", event: "pull" },
      codes: /^(PEER_LOST|PEER_UNREACHABLE|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/,
    },
    {
      fault: { role: "sender", to: "GRANT", event: "progress" },
      ready: 64,
      codes: /^(PEER_LOST|PEER_UNREACHABLE|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/,
    },
    {
      fault: { role: "sender", to: "GRANT", event: "renewed" },
      ready: 64,
      codes: /^(PEER_LOST|PEER_UNREACHABLE|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/,
    },
    {
      fault: { role: "sender", to: "ENDING" },
      ready: 64,
      codes: /^(PEER_LOST|PEER_UNREACHABLE|QUEUE_TIMEOUT|TRANSFER_TIMEOUT)$/,
    },
    { fault: { role: "sender", to: "END" }, codes: /^COMPLETE$/ },
  ];
  it.each(everyAct(senderFaults))(
    "the sender in $fault.to by $fault.event, $fault.act: the receiver ends in time and has its blocks back",
    async ({ fault, ready, codes }) => {
      const victim = await peers.open(FAST);
      const id = next++;
      const { state } = await victim.send({ request: id, tokens: 300, ...(ready === undefined ? {} : { ready }) });
      await victim.arm(fault);
      await survivor.receive({ id, state, tokens: 300 });
      if (fault.event === "progress" || fault.to === "ENDING") {
        await survivor.arrived(id, 64);
        if (fault.to === "ENDING") void victim.call("cancelSend", { request: id });
        else void victim.call("ready", { request: id, tokens: 100 });
      }
      const ended = await within(survivor.received(id));
      expect(ended.code ?? "COMPLETE").toMatch(codes);
      expect(ended.wrong).toBe(0);
      if (fault.act === "SIGSTOP") {
        await stopped(victim);
        victim.child.kill("SIGCONT");
        await within(victim.sent(id));
        await until(
          "the resumed sender has its blocks back",
          async () => (await victim.stats()).blocks.free === BLOCKS,
        );
      }
      await victim.kill();
      await expectNothingLeft();
    },
  );

  it("a strict receiver takes a piece only when a renewal has confirmed the lease after it", async () => {
    const strict = await peers.open({ ...FAST, lease: { ...FAST.lease, strict: true } });
    const id = next++;
    const { state } = await survivor.send({ request: id, tokens: 300 });
    // Reached only when a piece has arrived that the lease alone does not vouch for.
    await strict.arm({ role: "receiver", to: "READ", event: "pieceLate", say: true });
    const late = strict.reached("READ");
    await strict.receive({ id, state, tokens: 300 });
    await late;
    expect(await strict.received(id)).toMatchObject({ wrong: 0, report: { tokens: 300 } });
    await survivor.sent(id);
    await strict.kill();
    await expectNothingLeft();
  });

  it.each(["SIGKILL", "SIGSTOP"] as const)(
    "the sender in OFFER, before anybody pulls, %s: the receiver ends in time and has its blocks back",
    async (act) => {
      const victim = await peers.open(FAST);
      const id = next++;
      const { state } = await victim.send({ request: id, tokens: 300 });
      victim.child.kill(act);
      if (act === "SIGKILL") await victim.exited;
      await survivor.receive({ id, state, tokens: 300 });
      expect((await within(survivor.received(id))).code).toMatch(/^(PEER_UNREACHABLE|PEER_LOST|QUEUE_TIMEOUT)$/);
      await victim.kill();
      await expectNothingLeft();
    },
  );

  it.each(["SIGKILL", "SIGSTOP"] as const)(
    "the receiver in RETRY, told BUSY because another one's lease runs, %s: the sender ends in time",
    async (act) => {
      const [holder, victim] = [await peers.open(FAST), await peers.open(FAST)];
      const id = next++;
      const { state } = await survivor.send({ request: id, tokens: 300 });
      await holder.arm({ role: "receiver", to: "READ", event: "granted", act: "SIGKILL" });
      void holder.call("receive", { id, state, tokens: 300 });
      await holder.exited;
      await victim.arm({ role: "receiver", to: "RETRY", act });
      void victim.call("receive", { id, state, tokens: 300 });
      expect((await within(survivor.sent(id))).code).toMatch(/^(LEASE_EXPIRED|OFFER_EXPIRED)$/);
      await victim.kill();
      await expectNothingLeft();
    },
  );

  it("a sender killed after it granted changes nothing: the mapped pull completes", async () => {
    // Long, as a busy machine may take a third of a short one over the read: that the lease was held is then no longer certain.
    const victim = await peers.open({ ...FAST, lease: { leaseMs: 30_000 } });
    const id = next++;
    const { state } = await victim.send({ request: id, tokens: 300 });
    // The receiver kills it in the very step that begins to read, before the first read is posted.
    await survivor.arm({ role: "receiver", to: "READ", event: "granted", act: "SIGKILL", pid: victim.pid });
    await survivor.receive({ id, state, tokens: 300 });
    expect(await within(survivor.received(id))).toMatchObject({ wrong: 0, report: { tokens: 300 } });
    await expectNothingLeft();
  });

  it("a restarted receiver is served at once, but an offer leased to its old epoch is BUSY until that lease ends", async () => {
    const victim = await peers.open(FAST);
    // Open already: starting a process may take longer than the lease runs.
    const restarted = await peers.open(FAST);
    const impatient = await peers.open({ ...FAST, config: { kv_transfer_timeout_ms: 600 } });
    const [leased, other] = [next++, next++];
    const { state } = await survivor.send({ request: leased, tokens: 300 });
    const second = await survivor.send({ request: other, tokens: 300 });
    await victim.arm({ role: "receiver", to: "READ", event: "granted", act: "SIGKILL" });
    void victim.call("receive", { id: leased, state, tokens: 300 });
    await victim.exited;
    await restarted.receive({ id: other, state: second.state, tokens: 300 });
    expect(await restarted.received(other)).toMatchObject({ wrong: 0, report: { tokens: 300 } });
    await impatient.receive({ id: leased, state, tokens: 300 });
    expect(await impatient.received(leased)).toMatchObject({ code: "BUSY" });
    expect(await within(survivor.sent(leased))).toMatchObject({ code: "LEASE_EXPIRED" });
    await Promise.all([restarted.kill(), impatient.kill()]);
    await expectNothingLeft();
  });

  it("a restarted sender is used at once, and what the old one offered is lost", async () => {
    const victim = await peers.open(FAST);
    const id = next++;
    const old = await victim.send({ request: id, tokens: 300 });
    const port = Number(new URL(victim.endpoints.tcp).port);
    await victim.kill();
    const listen = { host: "127.0.0.1", port };
    const restarted = await peers.open({ ...FAST, listen });
    await survivor.receive({ id, state: old.state, tokens: 300 });
    expect((await within(survivor.received(id))).code).toMatch(/^(STALE_EPOCH|NO_OFFER)$/);
    const { state } = await restarted.send({ request: id, tokens: 300 });
    await survivor.receive({ id, state, tokens: 300 });
    expect(await survivor.received(id)).toMatchObject({ wrong: 0, report: { tokens: 300 } });
    await restarted.kill();
    await expectNothingLeft();
  });
});
