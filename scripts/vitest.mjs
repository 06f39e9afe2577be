// Runs vitest once and counts its tests.
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { root } from "./prepare.mjs";
import { printCounts, readVitestReport } from "./report.mjs";
import { run, step } from "./steps.mjs";

/** @param {{ title: string, args?: string[], env?: NodeJS.ProcessEnv }} options args: files, --project and the like */
export async function runVitest({ title, args = [], env = {} }) {
  const folder = join(root, ".cache/reports");
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${title.replaceAll(/\W+/g, "-")}.json`);
  rmSync(file, { force: true });
  let counts;
  await step(title, async (say) => {
    const result = await run(
      process.execPath,
      [
        join(root, "node_modules/vitest/vitest.mjs"),
        "run",
        "--reporter=default",
        "--reporter=json",
        `--outputFile.json=${file}`,
        "--silent=passed-only",
        ...args,
      ],
      {
        cwd: root,
        env: { ...process.env, NO_COLOR: "1", ...env },
        mayFail: true,
        onLine: (line) => say(line.trim().replace(/^✓\s+/, "")),
      },
    );
    counts = readVitestReport(file, result.code, title, root);
    if (counts.failed > 0) console.log(`\n${result.output.slice(failurePart(result.output)).trimEnd()}`);
    return { note: printCounts(counts), failed: counts.failed > 0 };
  });
  return counts;
}

/** Where vitest begins to tell about failures; its list of passed files is no news. */
const failurePart = (output) => Math.max(0, output.search(/⎯+ (Failed|Unhandled)/));
