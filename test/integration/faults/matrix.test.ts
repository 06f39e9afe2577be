import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, describe, expect, it } from "vitest";
import { freePorts } from "../../../src/cli/ports.ts";
import { expectAsBefore, type Resources, resourcesOf } from "../held_resources.ts";
import { type Ended, layout, type Peer, Peers } from "../transceiver/peer_process.ts";
import { Wire } from "../transceiver/wire.ts";
import { until } from "../waits.ts";
import { type Cell, cells } from "./cells.ts";
import { FaultResults, shardOf } from "./results.ts";

const ROUNDS = Number(process.env.KVT_FAULT_ROUNDS ?? 2);
const LEASE_MS = 300;
const TIMEOUT_MS = 2_000;
/** Queue limit, a lease, the longest stop, and what a busy machine adds. */
const LIMIT_MS = TIMEOUT_MS + LEASE_MS + 600 + 3_000;
const SERVING_TRIES = 3;
const BLOCKS = 32;
/** 512 KiB a block: a large pull is a copy of milliseconds, and a fault behind its posting meets it under way. */
const large = { ...layout, layers: 8, kvHeads: 4, headDim: 64 };
const EVERY_TOKEN = BLOCKS * layout.tokensPerBlock;

const results = new FaultResults(cells);

/** A pair of processes and the wire between them; whoever a fault has ended is started again in its place. */
class Pair {
  readonly #peers = new Peers();
  readonly #options: object;
  #port = 0;
  #next = 1;
  again = 0;
  wire: Wire | null = null;
  context!: Peer;
  generation!: Peer;

  constructor(verify: "off" | "full") {
    const config = { kv_transfer_timeout_ms: TIMEOUT_MS };
    const pool = { memory: "host", blocks: BLOCKS };
    this.#options = { lease: { leaseMs: LEASE_MS }, config, layout: large, pool, verify };
  }

  async startContext(): Promise<void> {
    // Whoever is started again has to find its port free.
    if (this.#port === 0) [this.#port = 0] = await freePorts(1);
    this.context = await this.#peers.open({ ...this.#options, listen: { host: "127.0.0.1", port: this.#port } });
  }

  async startGeneration(): Promise<void> {
    this.generation = await this.#peers.open(this.#options);
  }

  fresh = (): Promise<Peer> => this.#peers.open(this.#options);
  id = (): number => this.#next++;

  /**
   * One request that needs every block. On a machine whose cores are all taken a process may stand still for longer than this short lease:
   * then it is asked again, which is counted.
   */
  async move(from: Peer, to: Peer): Promise<void> {
    for (let tries = 1; ; tries++) {
      const id = this.id();
      const { state } = await from.send({ request: id, tokens: EVERY_TOKEN });
      await to.receive({ id, state, tokens: EVERY_TOKEN });
      const [received, sent] = [await to.received(id), await from.sent(id)];
      if (tries < SERVING_TRIES && sent.code === "LEASE_EXPIRED" && received.wrong === 0) {
        this.again++;
        continue;
      }
      expect(received).toMatchObject({ wrong: 0, report: { tokens: EVERY_TOKEN } });
      expect(sent).toHaveProperty("report");
      return;
    }
  }

  /** Every block is free on both sides and serves again, both ways. */
  async expectServing(): Promise<void> {
    await this.#allFree();
    await this.move(this.context, this.generation);
    await this.#allFree();
    await this.move(this.generation, this.context);
    await this.#allFree();
  }

  /** A session gives its blocks back a moment after its outcome is told. */
  #allFree(): Promise<unknown> {
    return until("all blocks are free", async () => {
      const both = await Promise.all([this.context.stats(), this.generation.stats()]);
      return both.every(
        ({ blocks, sends, receives }) =>
          blocks.free === BLOCKS && blocks.quarantined === 0 && sends.open === 0 && receives.open === 0,
      );
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.wire?.close();
    await this.#peers[Symbol.asyncDispose]();
  }
}

const isStopped = (peer: Peer): boolean => / [Tt] /.test(readFileSync(`/proc/${peer.pid}/stat`, "utf8"));
const stopped = (peer: Peer): Promise<unknown> => until("it has stopped in the state", async () => isStopped(peer));
const codeOf = (ended: Ended): string => ended.code ?? "COMPLETE";

async function within<Value>(what: string, promise: Promise<Value>): Promise<Value> {
  const limit = AbortSignal.timeout(LIMIT_MS);
  const late = new Promise<never>((_, reject) => {
    limit.onabort = () => reject(new Error(`${what}: no end within ${LIMIT_MS} ms`));
  });
  return await Promise.race([promise, late]);
}

async function expectReceived({ generation }: Pair, cell: Cell, id: number): Promise<void> {
  const ended = await within("the generation side", generation.received(id));
  expect(codeOf(ended)).toMatch(cell.generation);
  expect(ended.wrong).toBe(0);
}

/** The fault in its state. Resolves when it has been fired and, for a stop, the process runs again. */
async function hit(pair: Pair, cell: Cell, id: number, state: string, tokens: number): Promise<void> {
  const { context, generation } = pair;
  const { fault, side } = cell;
  const victim = pair[side];
  const act = fault === "kill" ? "SIGKILL" : "SIGSTOP";
  // For a cut and for two restarts the generation side stands still in the state until the test has done its part.
  const pid = fault.startsWith("stop") || fault === "kill" ? victim.pid : generation.pid;
  await generation.arm({ ...cell.hook, act, pid, reader: context.pid });
  void generation.call("receive", { id, state, tokens });
  if (fault === "kill") {
    await victim.exited;
  } else if (fault.startsWith("stop")) {
    // Stopped before the DONE was written, so the receiver's end shows that it was.
    if (cell.state === "done-sent" && side === "context") await expectReceived(pair, cell, id);
    await stopped(victim);
    if (victim !== context && cell.state === "done-sent") context.child.kill("SIGCONT");
    await pause(fault === "stop 150 ms" ? 150 : 600);
    victim.child.kill("SIGCONT");
  } else {
    await stopped(generation);
    if (fault === "cut") pair.wire?.cutAtOneEnd(side === "context" ? "far" : "near");
    else
      await Promise.all((side === "context" ? [context, generation] : [generation, context]).map((one) => one.kill()));
    generation.child.kill("SIGCONT");
  }
  if (cell.state === "done-sent") context.child.kill("SIGCONT");
}

async function round(pair: Pair, cell: Cell): Promise<number> {
  const id = pair.id();
  const tokens = cell.state === "moving" || cell.state === "verifying" ? EVERY_TOKEN - 64 : 64;
  const offered = await pair.context.send({ request: id, tokens });
  const state = cell.fault === "cut" && pair.wire !== null ? pair.wire.through(offered.state) : offered.state;
  await hit(pair, cell, id, state, tokens);
  const started = performance.now();
  const [old, gone] = [pair.context, pair.generation];
  if (old.running) expect(codeOf(await within("the context side", old.sent(id)))).toMatch(cell.context);
  if (gone.running && !(cell.state === "done-sent" && cell.side === "context" && cell.fault.startsWith("stop"))) {
    await expectReceived(pair, cell, id);
  }
  const restarts = cell.side === "context" ? ["context", "generation"] : ["generation", "context"];
  for (const side of restarts) {
    if (side === "context" && !old.running) await pair.startContext();
    if (side === "generation" && !gone.running) await pair.startGeneration();
  }
  if (cell.fault === "both restarted") {
    // What the old process offered is lost, and is said to be.
    await pair.generation.receive({ id, state: offered.state, tokens });
    const ended = await within("a pull of the old offer", pair.generation.received(id));
    expect(codeOf(ended)).toMatch(/^(STALE_EPOCH|NO_OFFER|PEER_UNREACHABLE)$/);
  }
  await pair.expectServing();
  return performance.now() - started;
}

describe("faults in the states of a transfer between two processes, lease 300 ms", () => {
  afterAll(() => results.write());

  it.each(shardOf(cells))(
    "$fault, $side, $state",
    async (cell) => {
      await using pair = new Pair(cell.state === "verifying" ? "full" : "off");
      await Promise.all([pair.startContext(), pair.startGeneration()]);
      pair.wire = new Wire(pair.context.endpoints.tcp);
      await pair.wire.open();
      await pair.expectServing();
      const before = new Map<Peer, Resources>();
      for (const peer of [pair.context, pair.generation]) before.set(peer, resourcesOf(peer));
      const row = results.row(cell);
      pair.again = 0;
      for (let count = 0; count < ROUNDS; count++) row.recoveredMs.push(await round(pair, cell));
      expect(row.recoveredMs).toHaveLength(ROUNDS);
      row.again = pair.again;
      expect(row.again).toBeLessThanOrEqual(1 + ROUNDS / 10);
      const fresh = await pair.fresh();
      await pair.move(pair.context, fresh);
      await pair.move(pair.generation, fresh);
      await fresh.kill();
      for (const [peer, start] of before) {
        if (!peer.running) continue;
        await expectAsBefore(`process ${peer.pid}`, peer, start);
        // One that was stopped while it read has moved slowly, and says so.
        const unexpected = peer.log.split("\n").filter((line) => !line.includes('"linkGbPerS"'));
        expect(unexpected.join("\n")).toBe("");
      }
    },
    60_000 + ROUNDS * 10_000,
  );
});
