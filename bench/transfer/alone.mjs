// Chosen calls of suite `transfer` and nothing else: node bench/transfer/alone.mjs [CASE...]. Builds nothing, so that two checkouts that
// are built can be measured in turns, also where there is no npm.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { callCases, runCalls } from "./calls.mjs";

const cases = process.argv.length > 2 ? process.argv.slice(2) : ["receive-one-block", "loop-delay"];
const unknown = cases.filter((name) => !(name in callCases));
if (unknown.length > 0) {
  console.error(`no case ${unknown.join(", ")}; there are ${Object.keys(callCases).join(", ")}`);
  process.exit(1);
}
const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
try {
  await runCalls(
    (name, metric, value, unit) => console.log(`${name} ${metric} ${value.toFixed(2)} ${unit}`),
    () => {},
    socketDir,
    cases,
  );
} finally {
  rmSync(socketDir, { recursive: true, force: true });
}
