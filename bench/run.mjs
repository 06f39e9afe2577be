// npm run bench -- [--only SUITE] [--json FILE]: runs the suites below and prints their rows as a table.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { prepare } from "../scripts/prepare.mjs";

/** Each exports `run(add, say)`: `add(case, metric, value, unit)` makes a row, `say(text)` prints what a reader of the log wants. */
const suites = {
  transfer: () => import("./transfer/suite.mjs"),
  router: () => import("./router/suite.mjs"),
  engine: () => import("./engine/suite.mjs"),
  cancel: () => import("./cancel/suite.mjs"),
  ttft: () => import("./ttft/suite.mjs"),
  plan: () => import("./plan/suite.mjs"),
  nixl: () => import("./nixl/suite.mjs"),
  gpu: () => import("./gpu/suite.mjs"),
};

const { values } = parseArgs({ options: { only: { type: "string" }, json: { type: "string" } } });
if (values.only !== undefined && !(values.only in suites)) {
  console.error(`no suite ${values.only}; there are: ${Object.keys(suites).join(", ")}`);
  process.exit(1);
}

// The cases run what is built, addon and dist/.
await prepare();
const rows = [];
for (const [suite, load] of Object.entries(suites)) {
  if (values.only !== undefined && values.only !== suite) continue;
  const { run } = await load();
  const add = (name, metric, value, unit) => {
    rows.push({ suite, case: name, metric, value, unit });
    console.log(`${suite.padEnd(10)} ${name.padEnd(20)} ${metric.padEnd(22)} ${format(value).padStart(12)} ${unit}`);
  };
  await run(add, (text) => console.log(`# ${text}`));
}
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify({ rows }, null, 1)}\n`);
// Suites end their own processes; nothing of theirs may keep this one.
process.exit(0);

function format(value) {
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}
