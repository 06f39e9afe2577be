// The fault matrix by hand: npm run faults -- [--rounds N] [--table FILE]. Each cell is hit N times; the table has hits and recovery times.
import { spawnSync } from "node:child_process";
import { resolve } from "node:path";
import { parseArgs } from "node:util";

const { values } = parseArgs({ options: { rounds: { type: "string", default: "2" }, table: { type: "string" } } });
const table = values.table === undefined ? {} : { KVT_FAULT_TABLE: resolve(values.table) };
const result = spawnSync(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", "--project", "integration", "test/integration/faults"],
  { stdio: "inherit", env: { ...process.env, KVT_FAULT_ROUNDS: values.rounds, ...table } },
);
process.exit(result.status ?? 1);
