// Builds and runs native/test/*_test.cc, each an own program: node scripts/cpp_tests.mjs [--build] [--sanitize KIND | --target CPU] [NAME...]
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { root } from "./prepare.mjs";
import { addCounts, noCounts, printCounts } from "./report.mjs";
import { main, run, step, Told } from "./steps.mjs";
import { buildJobs, onPath, provideCmake, requireCompiler } from "./toolchain.mjs";

const TEST_LIMIT_MS = 600_000;

/** Settings of the sanitizers' runtimes: the first finding ends the program, and a leak is a finding. */
export const sanitizerSettings = {
  ASAN_OPTIONS: "detect_leaks=1:detect_stack_use_after_return=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
  TSAN_OPTIONS: "halt_on_error=1:second_deadlock_stack=1",
};

/** Other processors that the tests are compiled for, and run on in an emulator of user programs. */
export const crossTargets = {
  aarch64: {
    compiler: "aarch64-linux-gnu-g++",
    emulator: ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
    packages: ["g++-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"],
    // What has code of its own for the processor, or depends on its float arithmetic; the rest would only be slow.
    tests: [
      "copy_crew_test",
      "dequantize_test",
      "digest_test",
      "engine_test",
      "geometry_test",
      "kernels_test",
      "plan_random_test",
      "plan_test",
      "sampler_test",
    ],
  },
};

/** Programs that a target needs and that are not on PATH. */
export const missingCrossTools = (target) => {
  const { compiler, emulator } = crossTargets[target];
  return [compiler, emulator[0]].filter((name) => !onPath(name));
};

/** How CMake and the programs are called for a processor; nothing special for this machine's own. */
function crossSettings(target) {
  if (target === "") return { compiler: requireCompiler(), configure: [], emulator: [], tests: undefined };
  const cross = crossTargets[target];
  if (cross === undefined)
    throw new Told(`No such target: ${target}. There are: ${Object.keys(crossTargets).join(", ")}.`);
  const missing = missingCrossTools(target);
  if (missing.length > 0) {
    throw new Told(`${missing.join(" and ")} not found (Debian, Ubuntu: \`apt install ${cross.packages.join(" ")}\`).`);
  }
  const configure = ["-DCMAKE_SYSTEM_NAME=Linux", `-DCMAKE_SYSTEM_PROCESSOR=${target}`];
  return { compiler: cross.compiler, configure, emulator: cross.emulator, tests: cross.tests };
}

/**
 * @param {{ sanitize?: string, target?: string, names?: string[], without?: string[] }} options
 *   sanitize: value of -fsanitize=; target: one of crossTargets, without it this machine; names: test programs, without them all, of
 *   another target those that matter there; without: not these
 * @returns what runs them, with their names
 */
async function buildCppTests({ sanitize = "", target = "", names, without = [] }) {
  const variant = target !== "" ? target : sanitize;
  const folder = join(root, variant === "" ? "build-tests" : `build-tests-${variant.split(",")[0]}`);
  const kind = variant === "" ? "" : ` (${variant})`;
  const { compiler, configure: targetSettings, emulator, tests } = crossSettings(target);
  names ??= tests;
  const all = readdirSync(join(root, "native/test"))
    .filter((file) => file.endsWith("_test.cc"))
    .map((file) => file.slice(0, -".cc".length));
  const programs = all.filter((name) => (names?.includes(name) ?? true) && !without.includes(name));

  await step(`build C++ tests${kind}`, async (say) => {
    const cmake = await provideCmake(root, say);
    const configure = ["-S", root, "-B", folder, "-DKVT_TESTS=ON", `-DKVT_SANITIZE=${sanitize}`, ...targetSettings];
    if (!existsSync(join(folder, "CMakeCache.txt"))) configure.push(`-DCMAKE_CXX_COMPILER=${compiler}`);
    await run(cmake, configure);
    // Make builds named targets one after another, so all of them are built as "all".
    const built = names === undefined ? [] : ["--target", ...programs];
    await run(cmake, ["--build", folder, "--parallel", String(buildJobs()), ...built], {
      onLine: (line) => say(line.match(/^\[\s*\d+%\]/)?.[0] ?? ""),
    });
  });
  return { kind, programs: programs.map((name) => ({ name, command: [...emulator, join(folder, name)] })) };
}

/**
 * @param {{ sanitize?: string, target?: string, names?: string[], without?: string[], env?: NodeJS.ProcessEnv, label?: string }} options
 *   as of buildCppTests; env: beside the process's own; label: what env means
 */
export async function runCppTests({ env = {}, label = "", ...which } = {}) {
  const { kind, programs } = await buildCppTests(which);
  const counts = noCounts();
  await step(`C++ tests${kind}${label}`, async (say) => {
    for (const { name, command } of programs) {
      say(name);
      addCounts(counts, await runProgram(command, name, { ...process.env, ...sanitizerSettings, ...env }));
    }
    return { note: printCounts(counts), failed: counts.failed > 0 };
  });
  return counts;
}

async function runProgram([program, ...args], name, env) {
  const result = await run(program, args, { cwd: root, env, mayFail: true, timeoutMs: TEST_LIMIT_MS });
  const lines = result.output.split("\n");
  const counts = noCounts();
  counts.passed = lines.filter((line) => line.startsWith("ok ")).length;
  const skipped = lines.filter((line) => line.startsWith("skip "));
  counts.skipped = skipped.length;
  counts.skips = skipped.map((line) => `${name}: ${line.slice("skip ".length).trim()}`);
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
    const option = (name) => {
      const at = args.indexOf(name);
      return at < 0 ? "" : (args.splice(at, 2)[1] ?? "");
    };
    const onlyBuild = args[0] === "--build";
    if (onlyBuild) args.shift();
    const builds = { sanitize: option("--sanitize"), target: option("--target") };
    const which = args.length > 0 ? { ...builds, names: args } : builds;
    if (onlyBuild) {
      await buildCppTests(which);
      return 0;
    }
    const counts = await runCppTests(which);
    return counts.failed > 0 ? 1 : 0;
  });
}
