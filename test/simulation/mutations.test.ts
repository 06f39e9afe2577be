import { writeFileSync } from "node:fs";
import { expect, test, vi } from "vitest";
import { mutations } from "./mutations.ts";
import { planOf } from "./plan.ts";
import { run } from "./run.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

const seeds = Number(process.env.KVT_SIM_MUTATION_SEEDS ?? 0);
const [share = 0, shares = 1] = (process.env.KVT_SIM_SHARE ?? "0/1").split("/").map(Number);

// Many seeds a mutation take an hour, so it runs by hand: npm run sim -- --mutations (docs/simulation.md).
test.runIf(seeds > 0)("every row of the session tables matters", { timeout: 36_000_000 }, async () => {
  const results: { name: string; caught: number | null }[] = [];
  const mine = mutations().filter((_, index) => index % shares === share);
  for (const { name, apply } of mine) {
    const restore = apply();
    let caught: number | null = null;
    try {
      for (let seed = 1; seed <= seeds && caught === null; seed++) {
        if ((await run(planOf(seed))).failure !== null) caught = seed;
      }
    } finally {
      restore();
    }
    results.push({ name, caught });
    console.log(`${caught ?? "SURVIVES"} ${name}`);
  }
  if (process.env.KVT_SIM_OUT !== undefined) writeFileSync(process.env.KVT_SIM_OUT, JSON.stringify(results));
  expect(mine.length * shares).toBeGreaterThan(100);
});
