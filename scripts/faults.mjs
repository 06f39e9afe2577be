// The fault matrix by hand: npm run faults -- [--level worker | nixl] [--rounds N] [--jobs N] [--results FILE] [--table FILE] [--docs]. Each cell is hit N times, by
// as many processes side by side as there are jobs. `--merge FILE...` runs nothing and adds up the results of earlier runs.
import { mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { mergeResults, missingHits, renderTable, withTable } from "./fault_tables.mjs";
import { root } from "./prepare.mjs";
import { main, run, seconds, Told } from "./steps.mjs";

/** `shards`: shares of the cells; more than jobs, so that no job is left alone with the slow ones. A share of workers starts its own. */
const levels = {
  transceiver: { file: "test/integration/faults/matrix.test.ts", shards: 50 },
  worker: { file: "test/integration/faults/workers.test.ts", shards: 25 },
  nixl: { file: "test/interop/nixl_faults.test.ts", shards: 24 },
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    level: { type: "string", default: "transceiver" },
    rounds: { type: "string", default: "2" },
    jobs: { type: "string", default: "1" },
    results: { type: "string" },
    table: { type: "string" },
    docs: { type: "boolean", default: false },
    merge: { type: "boolean", default: false },
  },
});
const { level } = values;
const [rounds, jobs] = [Number(values.rounds), Number(values.jobs)];

/** Once and before all: jobs that find dist/ older than src/ would all build it. */
async function build() {
  await run(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], { cwd: root });
  const now = new Date();
  utimesSync(join(root, "dist/.tsbuildinfo"), now, now);
}

async function runShard(shard, folder) {
  const results = join(folder, `${shard}.json`);
  const { code, output } = await run(
    process.execPath,
    ["node_modules/vitest/vitest.mjs", "run", "--project=integration", "--passWithNoTests", levels[level].file],
    {
      cwd: root,
      mayFail: true,
      env: {
        ...process.env,
        NO_COLOR: "1",
        KVT_FAULT_ROUNDS: String(rounds),
        KVT_FAULT_SHARD: `${shard}/${levels[level].shards}`,
        KVT_FAULT_RESULTS: results,
      },
    },
  );
  if (code !== 0) console.log(output.trimEnd());
  return { code, found: JSON.parse(readFileSync(results, "utf8")) };
}

/** Also while it runs, so that what is stopped half-way is not lost. */
function write(results) {
  if (values.results !== undefined) writeFileSync(values.results, `${JSON.stringify(results)}\n`);
  if (values.table !== undefined) writeFileSync(values.table, renderTable(results));
}

async function runAll() {
  const started = Date.now();
  await build();
  const folder = mkdtempSync(join(tmpdir(), "kvt-faults-"));
  let results = { cells: [], rows: [] };
  let failed = 0;
  let next = 0;
  const job = async () => {
    while (next < levels[level].shards) {
      const { code, found } = await runShard(next++, folder);
      if (code !== 0) failed++;
      results = mergeResults([{ cells: found.cells, rows: [] }, results, found]);
      write(results);
      const after = seconds(Date.now() - started);
      for (const { cell, recoveredMs } of found.rows) console.log(`${after}  ${cell}: ${recoveredMs.length} hits`);
    }
  };
  try {
    await Promise.all(Array.from({ length: jobs }, job));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const missing = missingHits(results, rounds);
  for (const line of missing) console.log(`too few: ${line}`);
  console.log(`${rounds} rounds, ${results.rows.length} cells, ${failed} failed, ${seconds(Date.now() - started)}`);
  return { results, code: failed > 0 || missing.length > 0 ? 1 : 0 };
}

await main(async () => {
  if (!Object.hasOwn(levels, level)) throw new Told(`--level is one of ${Object.keys(levels).join(", ")}`);
  if (!(rounds > 0 && jobs > 0)) throw new Told("--rounds and --jobs are counts above 0");
  const read = (file) => JSON.parse(readFileSync(file, "utf8"));
  const { results, code } = values.merge ? { results: mergeResults(positionals.map(read)), code: 0 } : await runAll();
  write(results);
  if (values.docs) {
    const page = join(root, "docs/faults.md");
    writeFileSync(page, withTable(readFileSync(page, "utf8"), level, renderTable(results)));
  }
  return code;
});
