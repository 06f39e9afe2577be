// Runs the simulation by hand: npm run sim -- [--seeds N] [--first SEED] [--coverage | --mutations]. A failure prints the seed and the command that
// replays it; --coverage prints how often each row of the session tables was taken; --mutations changes every cell of the session tables in turn and lists the changes that N seeds do not notice.
import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    seeds: { type: "string" },
    first: { type: "string", default: "1" },
    coverage: { type: "boolean", default: false },
    mutations: { type: "boolean", default: false },
  },
});
const seeds = values.seeds ?? (values.mutations ? "300" : "5000");
const [file, env] = values.mutations
  ? ["mutations", { KVT_SIM_MUTATION_SEEDS: seeds }]
  : [
      "simulation",
      { KVT_SIM_SEEDS: seeds, KVT_SIM_FIRST: values.first, ...(values.coverage ? { KVT_SIM_COVERAGE: "1" } : {}) },
    ];
const result = spawnSync(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", "--project", "unit", `test/simulation/${file}.test.ts`],
  { stdio: "inherit", env: { ...process.env, ...env } },
);
process.exit(result.status ?? 1);
