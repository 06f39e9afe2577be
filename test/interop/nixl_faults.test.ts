import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { FaultResults, shardOf } from "../integration/faults/results.ts";
import { type Ended, layout, type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { until } from "../integration/waits.ts";
import { DEVICE, Namespaces, type Place } from "./namespaces.ts";
import { cells, type NixlCell } from "./nixl_fault_cells.ts";
import { nixlCases } from "./nixl_wheel.ts";

/** Without it, a few cells once: CI's nixl lane asks for all of them. */
const asked = process.env.KVT_FAULT_ROUNDS;
const ROUNDS = Number(asked ?? 1);
const LEASE_MS = 400;
const TIMEOUT_MS = 3_000;
const STOP_MS = 700;
/** Longer than lease, silence and the hold of a cut-off job. */
const DOWN_MS = 1_500;
const LIMIT_MS = TIMEOUT_MS + LEASE_MS + DOWN_MS + 5_000;
const SERVING_TRIES = 4;
/** For all that was left over to end, and for a request that needs every block, once both processes run and the link carries. */
const SERVED_MS = 2_000;
const BLOCKS = 32;
/** 512 KiB a block: a large pull takes milliseconds. */
const large = { ...layout, layers: 8, kvHeads: 4, headDim: 64 };
const EVERY_TOKEN = BLOCKS * layout.tokensPerBlock;

const cases = nixlCases().filter(({ name }) => /TCP|tcp/.test(name));
const named = cases.flatMap(({ name }) => cells.map((cell) => ({ ...cell, fault: `${name}: ${cell.fault}` })));
const results = new FaultResults(named);
const opened = await Namespaces.open();
const namespaces = typeof opened === "string" ? undefined : opened;
const variables = { NIXL_LOG_LEVEL: "FATAL", UCX_LOG_LEVEL: "fatal", KVT_LOG_LEVEL: "error" };

afterAll(async () => {
  results.write();
  await namespaces?.[Symbol.asyncDispose]();
});

/** Two processes, each in a network namespace of its own where the system has any; whoever a fault has ended is started again. */
class Pair implements AsyncDisposable {
  readonly #peers = new Peers();
  readonly #others = new Peers();
  #next = 1;
  again = 0;
  /** Of each round. */
  readonly servedMs: number[] = [];
  context!: Peer;
  generation!: Peer;

  async start(place: Place): Promise<void> {
    const host = namespaces?.address(place) ?? "127.0.0.1";
    // Sockets of the file system would cross the namespaces: each side has a directory of its own.
    this[place] = await (place === "context" ? this.#peers : this.#others).open(
      {
        lease: { leaseMs: LEASE_MS },
        config: { kv_transfer_timeout_ms: TIMEOUT_MS },
        layout: large,
        pool: { memory: "host", blocks: BLOCKS },
        listen: { host, port: 0 },
      },
      true,
      namespaces?.entry(place),
    );
  }

  id = (): number => this.#next++;

  async move(from: Peer, to: Peer, path: string | undefined): Promise<void> {
    for (let tries = 1; ; tries++) {
      const id = this.id();
      const { state } = await from.send({ request: id, tokens: EVERY_TOKEN });
      await to.receive({ id, state, tokens: EVERY_TOKEN });
      const [received, sent] = [await to.received(id), await from.sent(id)];
      expect(received.wrong).toBe(0);
      if (tries < SERVING_TRIES && received.report === undefined) {
        this.again++;
        await this.expectFree();
        continue;
      }
      expect(received).toMatchObject({ report: { tokens: EVERY_TOKEN, path } });
      expect(sent.code ?? "COMPLETE").toMatch(/^(COMPLETE|LEASE_EXPIRED)$/);
      return;
    }
  }

  async expectFree(): Promise<void> {
    await until(
      "all blocks are free, none in quarantine",
      async () => {
        const both = await Promise.all([this.context.stats(), this.generation.stats()]);
        return both.every(
          ({ blocks, sends, receives }) =>
            blocks.free === BLOCKS && blocks.quarantined === 0 && sends.open === 0 && receives.open === 0,
        );
      },
      30_000,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#peers[Symbol.asyncDispose](), this.#others[Symbol.asyncDispose]()]);
  }
}

const isTaste = ({ side, state }: NixlCell): boolean => side === "context" && state === "moving";
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

async function expectReceived({ generation }: Pair, cell: NixlCell, id: number): Promise<void> {
  const ended = await within("the generation side", generation.received(id));
  expect(codeOf(ended)).toMatch(cell.generation);
  expect(ended.wrong).toBe(0);
}

/** The fault in its state; when it resolves, the processes that live run again, and a link is still down. */
async function hit(pair: Pair, cell: NixlCell, id: number, state: string, tokens: number): Promise<boolean> {
  const { context, generation } = pair;
  const victim = pair[cell.side];
  const act = cell.fault === "kill" ? "SIGKILL" : "SIGSTOP";
  const pid = cell.fault === "link down" ? generation.pid : victim.pid;
  await generation.arm({ ...cell.hook, act, pid, reader: context.pid });
  void generation.call("receive", { id, state, tokens });
  let isTold = false;
  if (cell.fault === "kill") {
    await victim.exited;
  } else if (cell.fault === "stop") {
    if (cell.state === "done-sent" && cell.side === "context") {
      await expectReceived(pair, cell, id);
      isTold = true;
    }
    await stopped(victim);
    if (victim !== context && cell.state === "done-sent") context.child.kill("SIGCONT");
    await pause(STOP_MS);
    victim.child.kill("SIGCONT");
  } else {
    await stopped(generation);
    namespaces?.pullOut(cell.side);
    generation.child.kill("SIGCONT");
  }
  if (cell.state === "done-sent") context.child.kill("SIGCONT");
  return isTold;
}

async function round(pair: Pair, cell: NixlCell, path: string | undefined): Promise<number> {
  const id = pair.id();
  const tokens = cell.state === "moving" ? EVERY_TOKEN - 64 : 64;
  const { state } = await pair.context.send({ request: id, tokens });
  const { context, generation } = pair;
  const isTold = await hit(pair, cell, id, state, tokens);
  const started = performance.now();
  if (cell.fault === "link down") await pause(DOWN_MS);
  // Each side ends by itself, also while the link is down.
  if (context.running) expect(codeOf(await within("the context side", context.sent(id)))).toMatch(cell.context);
  if (generation.running && !isTold) await expectReceived(pair, cell, id);
  if (cell.fault === "link down") await namespaces?.plugIn(cell.side);
  if (!context.running) await pair.start("context");
  if (!generation.running) await pair.start("generation");
  const ready = performance.now();
  await pair.expectFree();
  await pair.move(pair.context, pair.generation, path);
  pair.servedMs.push(performance.now() - ready);
  expect(pair.servedMs.at(-1)).toBeLessThan(2 * SERVED_MS);
  await pair.move(pair.generation, pair.context, path);
  return performance.now() - started;
}

describe.each(cases)("faults in the states of a transfer, $name", ({ name, env, missing }) => {
  const before = new Map<string, string | undefined>();
  beforeAll(() => {
    // UCX would take the loopback devices of two namespaces for one.
    const device = namespaces === undefined ? {} : { UCX_NET_DEVICES: DEVICE, FI_TCP_IFACE: DEVICE };
    for (const [key, value] of Object.entries({ ...variables, ...device, ...env })) {
      before.set(key, process.env[key]);
      process.env[key] = value;
    }
  });
  afterAll(() => {
    for (const [key, value] of before) {
      if (value === undefined) delete process.env[key];
      else process.env[key] = value;
    }
  });
  beforeEach(({ skip }) => {
    if (missing !== undefined) skip(missing);
  });

  it.for(asked === undefined ? cells.filter(isTaste) : shardOf(cells))(
    "$fault, $side, $state",
    { timeout: 60_000 + ROUNDS * 40_000 },
    async (cell, { skip }) => {
      if (cell.fault === "link down" && typeof opened === "string") return skip(opened);
      await using pair = new Pair();
      await Promise.all([pair.start("context"), pair.start("generation")]);
      await pair.move(pair.context, pair.generation, env.KVT_PATH);
      await pair.move(pair.generation, pair.context, env.KVT_PATH);
      const row = results.row({ ...cell, fault: `${name}: ${cell.fault}` });
      pair.again = 0;
      for (let count = 0; count < ROUNDS; count++) row.recoveredMs.push(await round(pair, cell, env.KVT_PATH));
      row.again = pair.again;
      // A busy machine makes each longer.
      expect(Math.min(...pair.servedMs)).toBeLessThan(SERVED_MS);
      expect(row.again).toBeLessThanOrEqual(2 + ROUNDS);
      for (const peer of [pair.context, pair.generation]) {
        const { nixl } = await peer.stats();
        expect(nixl).toMatchObject({ wedged: [], replaced: 0, exhausted: false });
      }
    },
  );
});
