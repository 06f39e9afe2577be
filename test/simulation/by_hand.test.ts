import { readFileSync, writeFileSync } from "node:fs";
import { expect, test, vi } from "vitest";
import { explore, report, seedsFrom } from "./explore.ts";
import type { Plan } from "./plan.ts";
import { run } from "./run.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

const { KVT_SIM_SEEDS, KVT_SIM_FROM, KVT_SIM_PLAN, KVT_SIM_OUT } = process.env;
const timeout = 36_000_000;

// scripts/sim.mjs runs these, in as many processes as it is told to.
test.runIf(KVT_SIM_SEEDS !== undefined)("invariants I1 to I8 hold", { timeout }, async () => {
  const summary = await explore(seedsFrom(Number(KVT_SIM_FROM ?? 1), Number(KVT_SIM_SEEDS)));
  if (KVT_SIM_OUT !== undefined) writeFileSync(KVT_SIM_OUT, JSON.stringify(summary));
  if (summary.report !== null) throw new Error(summary.report);
});

test.runIf(KVT_SIM_PLAN !== undefined)("invariants I1 to I8 hold in a plan", { timeout }, async () => {
  const plan = JSON.parse(readFileSync(KVT_SIM_PLAN as string, "utf8")) as Plan;
  const result = await run(plan, { tracing: true });
  console.log(report(KVT_SIM_PLAN as string, plan, result));
  expect(result.failure).toBeNull();
});
