// Runs the simulation by hand (docs/simulation.md): npm run sim -- [--seeds N] [--from SEED] [--workers W] [--coverage], or --plan FILE, or
// --mutations [--seeds N] [--workers W] [--only REGEX]. A failure prints its seed, the plan shrunk, and what happened.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    seeds: { type: "string" },
    from: { type: "string", default: "1" },
    workers: { type: "string", default: "1" },
    plan: { type: "string" },
    coverage: { type: "boolean", default: false },
    mutations: { type: "boolean", default: false },
    only: { type: "string", default: "" },
  },
});
const MOST_FAILURES = 100;
const workers = Math.max(1, Number(values.workers));
const folder = mkdtempSync(join(tmpdir(), "kvt-sim-"));
mkdirSync(folder, { recursive: true });

/** @returns its exit status; what it prints is passed on when it fails, or when it is the only one */
function vitest(file, env) {
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      ["node_modules/vitest/vitest.mjs", "run", "--project", "unit", `test/simulation/${file}.test.ts`],
      { stdio: ["ignore", workers === 1 ? "inherit" : "pipe", "inherit"], env: { ...process.env, ...env } },
    );
    let printed = "";
    child.stdout?.on("data", (chunk) => {
      printed += chunk;
    });
    child.on("close", (status) => {
      if (status !== 0) process.stdout.write(printed);
      resolve(status ?? 1);
    });
  });
}

const outs = Array.from({ length: workers }, (_, index) => join(folder, `${index}.json`));
/** Of those that got to their end. */
const results = () => outs.filter(existsSync).map((out) => JSON.parse(readFileSync(out, "utf8")));

function addUp(summaries, field) {
  const sum = {};
  for (const summary of summaries) {
    for (const [name, count] of Object.entries(summary[field])) sum[name] = (sum[name] ?? 0) + count;
  }
  return Object.entries(sum).sort(([, a], [, b]) => a - b);
}

async function seeds() {
  const total = Number(values.seeds ?? 5000);
  const share = Math.ceil(total / workers);
  const started = Date.now();
  const statuses = await Promise.all(
    outs.map((out, index) => {
      const count = Math.min(share, total - index * share);
      const env = {
        KVT_SIM_SEEDS: `${count}`,
        KVT_SIM_FROM: `${Number(values.from) + index * share}`,
        KVT_SIM_OUT: out,
      };
      return vitest("by_hand", env);
    }),
  );
  const summaries = results();
  const failures = summaries.flatMap((summary) => summary.failures);
  const sum = (field) => summaries.reduce((total, summary) => total + summary[field], 0);
  const outcomes = addUp(summaries, "outcomes").reverse();
  console.log(
    `${sum("runs")} runs, ${sum("steps")} steps, ${((Date.now() - started) / 1000).toFixed(0)} s, ${failures.length === 0 ? "no failure" : `${failures.length} seeds fail`}; ` +
      outcomes.map(([code, count]) => `${code} ${count}`).join(", "),
  );
  for (const [seed, what] of failures.slice(0, MOST_FAILURES)) console.log(`seed ${seed} fails: ${what}`);
  if (values.coverage) {
    for (const [row, count] of addUp(summaries, "coverage")) console.log(`${`${count}`.padStart(9)}  ${row}`);
  }
  return statuses.some((status) => status !== 0) ? 1 : 0;
}

async function mutations() {
  const statuses = await Promise.all(
    outs.map((out, index) =>
      vitest("mutations", {
        KVT_SIM_MUTATION_SEEDS: values.seeds ?? "5000",
        KVT_SIM_SHARE: `${index}/${workers}`,
        KVT_SIM_ONLY: values.only,
        KVT_SIM_OUT: out,
      }),
    ),
  );
  if (statuses.some((status) => status !== 0)) return 1;
  const all = results().flat();
  const survivors = all.filter(({ caught }) => caught === null);
  console.log(`${all.length} mutations, ${survivors.length} survive:`);
  for (const { name, tried } of survivors) console.log(`  ${name} (${tried} runs took the row)`);
  return 0;
}

let status;
try {
  if (values.plan !== undefined) status = await vitest("by_hand", { KVT_SIM_PLAN: values.plan });
  else status = await (values.mutations ? mutations() : seeds());
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(status);
