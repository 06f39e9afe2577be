// Runs the simulation by hand: npm run sim -- [--seeds N] [--first SEED]. A failure prints the seed and the command that replays it.
import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: { seeds: { type: "string", default: "5000" }, first: { type: "string", default: "1" } },
});
const result = spawnSync(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", "--project", "unit", "test/simulation/simulation.test.ts"],
  { stdio: "inherit", env: { ...process.env, KVT_SIM_SEEDS: values.seeds, KVT_SIM_FIRST: values.first } },
);
process.exit(result.status ?? 1);
