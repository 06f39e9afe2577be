// Builds and runs native/test/*_test.cc, each an own program: node scripts/cpp_tests.mjs [--sanitize KIND] [NAME...]
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { root } from "./prepare.mjs";
import { addCounts, noCounts, printCounts } from "./report.mjs";
import { main, run, step } from "./steps.mjs";
import { buildJobs, provideCmake, requireCompiler } from "./toolchain.mjs";

const TEST_LIMIT_MS = 600_000;

/** Settings of the sanitizers' runtimes: the first finding ends the program, and a leak is a finding. */
export const sanitizerSettings = {
  ASAN_OPTIONS: "detect_leaks=1:detect_stack_use_after_return=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
  TSAN_OPTIONS: "halt_on_error=1:second_deadlock_stack=1",
};

/**
 * @param {{ sanitize?: string, names?: string[] }} options
 *   sanitize: value of -fsanitize=; names: test programs to run, without them all
 */
export async function runCppTests({ sanitize = "", names } = {}) {
  const folder = join(root, sanitize === "" ? "build-tests" : `build-tests-${sanitize.split(",")[0]}`);
  const kind = sanitize === "" ? "" : ` (${sanitize})`;
  const all = readdirSync(join(root, "native/test"))
    .filter((file) => file.endsWith("_test.cc"))
    .map((file) => file.slice(0, -".cc".length));
  const programs = names === undefined ? all : all.filter((name) => names.includes(name));

  const compiler = requireCompiler();
  await step(`build C++ tests${kind}`, async (say) => {
    const cmake = await provideCmake(root, say);
    const configure = ["-S", root, "-B", folder, "-DKVT_TESTS=ON", `-DKVT_SANITIZE=${sanitize}`];
    if (!existsSync(join(folder, "CMakeCache.txt"))) configure.push(`-DCMAKE_CXX_COMPILER=${compiler}`);
    await run(cmake, configure);
    // Make builds named targets one after another, so all of them are built as "all".
    const targets = names === undefined ? [] : programs.flatMap((name) => ["--target", name]);
    await run(cmake, ["--build", folder, "--parallel", String(buildJobs()), ...targets], {
      onLine: (line) => say(line.match(/^\[\s*\d+%\]/)?.[0] ?? ""),
    });
  });

  const counts = noCounts();
  await step(`C++ tests${kind}`, async (say) => {
    for (const name of programs) {
      say(name);
      addCounts(counts, await runProgram(join(folder, name), name, { ...process.env, ...sanitizerSettings }));
    }
    return { note: printCounts(counts), failed: counts.failed > 0 };
  });
  return counts;
}

async function runProgram(file, name, env) {
  const result = await run(file, [], { cwd: root, env, mayFail: true, timeoutMs: TEST_LIMIT_MS });
  const lines = result.output.split("\n");
  const counts = noCounts();
  counts.passed = lines.filter((line) => line.startsWith("ok ")).length;
  const failed = lines.filter((line) => line.startsWith("FAIL "));
  counts.failed = failed.length;
  counts.failures = failed.map((line) => `${name}: ${line.slice("FAIL ".length).trim()}`);
  if (result.code !== 0 && counts.failed === 0) {
    counts.failed = 1;
    counts.failures = [`${name} ended with ${result.signal ?? `code ${result.code}`}`];
  }
  if (counts.failed > 0) console.log(`\n${result.output.trimEnd()}`);
  return counts;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    const args = process.argv.slice(2);
    const at = args.indexOf("--sanitize");
    const sanitize = at < 0 ? "" : args.splice(at, 2)[1];
    const counts = await runCppTests(args.length > 0 ? { sanitize, names: args } : { sanitize });
    return counts.failed > 0 ? 1 : 0;
  });
}
