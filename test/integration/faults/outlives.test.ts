import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ask } from "../worker/client.ts";
import { type Golden, goldens } from "../worker/golden.ts";
import { expectGolden } from "../worker/golden_check.ts";
import { type FleetWorker, WorkerFleet } from "./worker_fleet.ts";

/** One worker of each role: when the context worker is dead, nobody can prefill again. */
describe("KV that was granted outlives its worker", () => {
  let fleet: WorkerFleet;
  beforeAll(async () => {
    fleet = await WorkerFleet.start({ count: 1, verify: "sampled" });
  }, 120_000);
  afterAll(() => fleet?.[Symbol.asyncDispose]());

  it.each([
    ["no read is posted", { role: "receiver", to: "READ", event: "granted", reader: [] }],
    ["the read is posted", { role: "receiver", to: "POSTED", reader: [] }],
  ] as const)("the client gets every token after kill -9 of the context worker, when %s", async (_when, stop) => {
    await using router = await fleet.router();
    const [context, generation] = fleet.workers as [FleetWorker, FleetWorker];
    const golden = goldens.find(({ name }) => name === "key-700") as Golden;
    await generation.tell({ arm: stop });
    const reached = generation.reached();
    const answer = ask(router.url, golden.kind, golden.body);
    answer.catch(() => {});
    expect((await reached).sender).toBe(context.epoch);
    await context.kill();
    generation.child.kill("SIGCONT");
    expectGolden(await answer, golden);
    await fleet.quiet([generation]);
  });
});
