import { setTimeout as pause } from "node:timers/promises";
import { afterAll, describe, expect, it } from "vitest";
import { expectAsBefore, type Resources, resourcesOf } from "../held_resources.ts";
import { ask, askPair, type Body } from "../worker/client.ts";
import { type Golden, goldens } from "../worker/golden.ts";
import { expectGolden } from "../worker/golden_check.ts";
import { type Cell, cells, states } from "./cells.ts";
import { FaultResults, shardOf } from "./results.ts";
import { type FleetWorker, POOL_TOKENS, type Reached, type Router, WorkerFleet } from "./worker_fleet.ts";

/** Unset: one round of some cells, each fault on each side and each state among them. */
const ROUNDS = Number(process.env.KVT_FAULT_ROUNDS ?? 1);
const isWhole = process.env.KVT_FAULT_ROUNDS !== undefined;
/** Two tries of the queue limit, the longest stop, and what a busy machine adds. */
const LIMIT_MS = 15_000;
const EVERY_BLOCK: Body = {
  prompt: Array.from({ length: POOL_TOKENS - 1 }, (_, index) => 5 + (index % 300)),
  max_tokens: 2,
  ignore_eos: true,
  temperature: 0,
};
const named = (name: string): Golden => goldens.find((golden) => golden.name === name) as Golden;
const some = cells.filter((_, index) => index % states.length === Math.floor(index / states.length) % states.length);
const chosen = isWhole ? cells : some;
const results = new FaultResults(chosen);

interface Hit {
  readonly context: FleetWorker;
  readonly generation: FleetWorker;
}

/** Whichever generation worker gets the request stands still in the state. */
async function standStill(fleet: WorkerFleet, cell: Cell): Promise<() => Promise<Hit>> {
  const stop = {
    role: "receiver",
    to: cell.hook.to,
    ...(cell.hook.event === undefined ? {} : { event: cell.hook.event }),
  } as const;
  const reader = fleet.contexts.map(({ pid }) => pid);
  for (const worker of fleet.generations) await worker.tell({ arm: { ...stop, reader } });
  const reached = Promise.race(
    fleet.generations.map(async (worker): Promise<[FleetWorker, Reached]> => [worker, await worker.reached()]),
  );
  return async () => {
    const [generation, { sender }] = await reached;
    for (const worker of fleet.generations) if (worker !== generation) await worker.tell({ arm: null });
    const context = fleet.contexts.find(({ epoch }) => epoch === sender);
    if (context === undefined) throw new Error(`no context worker has epoch ${sender}`);
    return { context, generation };
  };
}

/** The fault, its victim standing in the state; everybody who lives runs again afterwards. */
async function fire(fleet: WorkerFleet, { fault, side }: Cell, hit: Hit): Promise<void> {
  const victim = hit[side];
  const others = fleet.workers.filter((worker) => worker !== victim);
  const goOn = (...workers: FleetWorker[]): void => {
    for (const worker of workers) if (worker.running) worker.child.kill("SIGCONT");
  };
  if (fault === "kill") {
    await victim.kill();
  } else if (fault === "both restarted") {
    await victim.kill();
    await hit[side === "context" ? "generation" : "context"].kill();
  } else if (fault === "cut") {
    await victim.cut();
  } else {
    victim.child.kill("SIGSTOP");
    await victim.stopped();
    goOn(...others);
    await pause(fault === "stop 150 ms" ? 150 : 600);
  }
  goOn(...fleet.workers);
}

async function within<Value>(what: string, promise: Promise<Value>): Promise<Value> {
  const limit = AbortSignal.timeout(LIMIT_MS);
  const late = new Promise<never>((_, reject) => {
    limit.onabort = () => reject(new Error(`${what}: no end within ${LIMIT_MS} ms`));
  });
  return await Promise.race([promise, late]);
}

/** @returns ms from the fault to a request served that needs every block of both workers that were hit */
async function round(fleet: WorkerFleet, cell: Cell, whole: string): Promise<number> {
  const golden = named(cell.state === "moving" || cell.state === "verifying" ? "key-700" : "raw-key");
  await using router: Router = await fleet.router();
  const reached = await standStill(fleet, cell);
  const answer = ask(router.url, golden.kind, golden.body);
  answer.catch(() => {});
  const hit = await within(
    "the state",
    Promise.race([reached(), answer.then(() => Promise.reject(new Error("answered without it")))]),
  );
  const started = performance.now();
  await fire(fleet, cell, hit);
  expectGolden(await within("the answer", answer), golden);
  for (const worker of [hit.context, hit.generation]) if (!worker.running) await worker.start();
  await fleet.quiet();
  expect((await askPair(hit, "completion", EVERY_BLOCK)).text).toBe(whole);
  return performance.now() - started;
}

/** Every context worker has a connection and a map in every generation worker, those that a fault has ended too. */
async function acquaint(fleet: WorkerFleet): Promise<void> {
  const golden = named("raw-dog");
  for (const context of fleet.contexts) {
    for (const generation of fleet.generations) {
      expectGolden(await askPair({ context, generation }, golden.kind, golden.body), golden);
    }
  }
}

describe("faults in the states of a request between workers behind a router, lease 300 ms", () => {
  let fleet: WorkerFleet | null = null;
  let whole = "";
  afterAll(async () => {
    results.write();
    await fleet?.[Symbol.asyncDispose]();
  });

  async function started(): Promise<WorkerFleet> {
    const made = await WorkerFleet.start({ count: 2, verify: "full" });
    const [context, generation] = [made.contexts[0] as FleetWorker, made.generations[0] as FleetWorker];
    whole = (await askPair({ context, generation }, "completion", EVERY_BLOCK)).text;
    return made;
  }

  it.each(shardOf(chosen))(
    "$fault, $side, $state",
    async (cell) => {
      const used = fleet ?? (await started());
      // One that a cell has failed in is not used again.
      fleet = null;
      try {
        await acquaint(used);
        const before = new Map<FleetWorker, [number, Resources]>(
          used.workers.map((worker) => [worker, [worker.pid, resourcesOf(worker)]]),
        );
        const row = results.row(cell);
        for (let count = 0; count < ROUNDS; count++) row.recoveredMs.push(await round(used, cell, whole));
        expect(row.recoveredMs).toHaveLength(ROUNDS);
        await expectNothingLeft(used, before);
        fleet = used;
      } finally {
        if (fleet === null) await used[Symbol.asyncDispose]();
      }
    },
    120_000 + ROUNDS * 30_000,
  );

  /** A fresh worker pulls from all and all pull from it; survivors hold no more than before. */
  async function expectNothingLeft(used: WorkerFleet, before: ReadonlyMap<FleetWorker, readonly [number, Resources]>) {
    await acquaint(used);
    const fresh = await used.add(null);
    for (const context of used.contexts) {
      expect((await askPair({ context, generation: fresh }, "completion", EVERY_BLOCK)).text).toBe(whole);
    }
    for (const generation of used.generations) {
      expect((await askPair({ context: fresh, generation }, "completion", EVERY_BLOCK)).text).toBe(whole);
    }
    await fresh.kill();
    await used.quiet();
    for (const [worker, [pid, start]] of before) {
      expect(worker.output).not.toMatch(/UNHANDLED|UnhandledPromise|internal defect/);
      if (worker.pid !== pid) continue;
      await expectAsBefore(worker.url, worker, start);
    }
  }
});
