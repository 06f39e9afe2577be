// What somebody sees who clones the repository: `npm start` in an empty folder, with an empty HOME and an empty cache of npm.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { bareHome } from "./bare_home.mjs";
import { demoClaims } from "./demo_lines.mjs";
import { root } from "./prepare.mjs";
import { closingSummary, noCounts } from "./report.mjs";
import { main, run, step, Told } from "./steps.mjs";

/** Packages, the addon from source, which takes three minutes on two idle cores and four times that on busy ones, and the demo. */
const START_LIMIT_MS = 25 * 60_000;
const TEST_LIMIT_MS = 5 * 60_000;
/** Tests that need packages, the addon and dist/, and take seconds: that all of them pass is for the other parts to show. */
const SOME_TESTS = ["test/integration/native/loader.test.ts", "test/unit/kv"];

/** What is committed, cloned; each claim about it counts as a test. */
export async function checkFreshClone() {
  const counts = noCounts();
  const check = async (title, body) => {
    try {
      const result = await step(title, body);
      counts.passed += 1;
      return result;
    } catch (error) {
      counts.failed += 1;
      counts.failures.push(`fresh clone: ${title}`);
      console.log(error instanceof Told ? error.message : error);
      return undefined;
    }
  };
  const place = mkdtempSync(join(tmpdir(), "kvt-clone-"));
  try {
    const clone = join(place, "clone");
    await step("git clone", () => run("git", ["clone", "--quiet", "--no-local", root, clone]));
    const env = {
      ...bareHome(place),
      npm_config_cache: join(place, "npm-cache"),
      TMPDIR: join(place, "tmp"),
    };
    mkdirSync(env.TMPDIR);
    let output = "";
    await check("npm start ends well", async () => {
      const started = await run("npm", ["start"], { cwd: clone, env, timeoutMs: START_LIMIT_MS, mayFail: true });
      output = started.output;
      if (started.code !== 0)
        throw new Told(`npm start ended with ${started.signal ?? started.code}:\n${lastLines(output)}`);
    });
    for (const { what, holds } of demoClaims(output)) {
      await check(what, async () => {
        if (!holds) throw new Told(`not in what it printed:\n${lastLines(output)}`);
      });
    }
    await check("npm test works there too", async () => {
      const { output: told } = await run("npm", ["test", ...SOME_TESTS], { cwd: clone, env, timeoutMs: TEST_LIMIT_MS });
      const sum = told.trim().split("\n").at(-1) ?? "";
      if (!/^[1-9]\d* passed, 0 failed/.test(sum)) throw new Told(`its last line is: ${sum}`);
      return sum;
    });
    await check("git ignores everything that was made", async () => {
      const { output: changes } = await run("git", ["status", "--porcelain"], { cwd: clone });
      if (changes !== "") throw new Told(changes);
    });
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
  return counts;
}

const lastLines = (text) => text.trimEnd().split("\n").slice(-60).join("\n");

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    const counts = await checkFreshClone();
    console.log(closingSummary(counts));
    return counts.failed > 0 ? 1 : 0;
  });
}
