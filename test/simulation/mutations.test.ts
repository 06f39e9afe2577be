import { appendFileSync } from "node:fs";
import { expect, test } from "vitest";
import { mutations } from "./mutations.ts";
import { run } from "./run.ts";

const seeds = Number(process.env.KVT_SIM_MUTATION_SEEDS ?? 0);

// Takes an hour with many seeds, so it runs by hand: npm run sim -- --mutations --seeds N (docs/simulation.md).
test.runIf(seeds > 0)("every cell of the session tables matters", { timeout: 36_000_000 }, async () => {
  const survivors: string[] = [];
  const all = mutations();
  for (const mutation of all) {
    const restore = mutation.apply();
    let caught = 0;
    try {
      for (let seed = 1; seed <= seeds && caught === 0; seed++) if ((await run(seed)).failure !== null) caught = seed;
    } finally {
      restore();
    }
    if (caught === 0) survivors.push(mutation.name);
    if (process.env.KVT_SIM_LOG) appendFileSync(process.env.KVT_SIM_LOG, `${caught || "SURVIVED"} ${mutation.name}\n`);
  }
  console.log(`${all.length} mutations, ${survivors.length} survive ${seeds} seeds:\n${survivors.join("\n")}`);
  expect(all.length).toBeGreaterThan(100);
});
