import { expect, test } from "vitest";
import { type Coverage, coverageTable } from "./coverage.ts";
import { run } from "./run.ts";

const seeds = Number(process.env.KVT_SIM_SEEDS ?? 5000);
const first = Number(process.env.KVT_SIM_FIRST ?? 1);

test(`invariants I1 to I8 hold in ${seeds} runs with hostile networks, clocks and processes`, {
  timeout: 36_000_000,
}, async () => {
  const outcomes = new Map<string, number>();
  const coverage: Coverage = new Map();
  let steps = 0;
  for (let seed = first; seed < first + seeds; seed++) {
    const result = await run(seed);
    steps += result.steps;
    for (const [code, count] of result.outcomes) outcomes.set(code, (outcomes.get(code) ?? 0) + count);
    for (const [row, hits] of result.coverage) coverage.set(row, (coverage.get(row) ?? 0) + hits);
    if (result.failure !== null) {
      const replay = `npm run sim -- --first ${seed} --seeds 1`;
      expect.fail(`seed ${seed}: ${result.failure.message}\nreplay: ${replay}\n\n${result.story}`);
    }
  }
  console.log(`${seeds} runs, ${steps} steps; ${[...outcomes].map(([code, count]) => `${code} ${count}`).join(", ")}`);
  if (process.env.KVT_SIM_COVERAGE !== undefined) console.log(coverageTable(coverage));
});
