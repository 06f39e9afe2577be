// npm run ci [-- PART...]: everything that must hold before a change is taken. As root it brings the tools it needs.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { crossTargets, missingCrossTools, runCppTests, sanitizerSettings } from "./cpp_tests.mjs";
import { checkFreshClone } from "./fresh_clone.mjs";
import { NIXL_TESTS, runNixlTests } from "./nixl.mjs";
import { checkPackage } from "./pack_check.mjs";
import { prepare, root } from "./prepare.mjs";
import { addCounts, closingSummary, noCounts } from "./report.mjs";
import { main, run, seconds, step, Told } from "./steps.mjs";
import { findCompiler, installByApt, onPath } from "./toolchain.mjs";

/** The version that .clang-format was written for: others format differently. */
const CLANG_FORMAT = "14";
const CLANG_FORMAT_PIP = "clang-format==14.0.6";
/** C++ tests whose threads share state; the engine's and the pure ones gain nothing from ThreadSanitizer but time. */
const THREADED_TESTS = [
  "completion_ring_test",
  "copy_crew_test",
  "data_plane_test",
  "dispatcher_test",
  "fd_exchange_test",
];
/** JS tests of the addon that make sense under AddressSanitizer; the engine itself is covered by its C++ tests, which are faster. */
const SANITIZED_JS = [
  "test/integration/native",
  "test/integration/dataplane",
  "test/integration/engine/lifetime.test.ts",
];

const ADDRESS = "address,undefined";
/** As deep as the folder of the C++ tests, so that ccache knows most objects. */
const ASAN_BUILD = join(root, "build-asan");

const started = Date.now();
const counts = noCounts();

/** One part of the run. Its failure is told and counted, and the next part runs all the same. */
async function lane(title, body) {
  console.log(`\n── ${title}`);
  try {
    addCounts(counts, (await body()) ?? noCounts());
  } catch (error) {
    console.log(error instanceof Told ? error.message : error);
    addCounts(counts, { passed: 0, failed: 1, skipped: 0, failures: [title], skips: [] });
  }
}

async function bringTools() {
  const wanted = [
    findCompiler() ? "" : "g++",
    onPath("make") || onPath("ninja") ? "" : "make",
    onPath("python3") ? "" : "python3-pip",
    onPath("ccache") ? "" : "ccache",
  ];
  const missing = wanted.filter((name) => name !== "");
  if (missing.length > 0) {
    await step(`apt-get install ${missing.join(" ")}`, async () => {
      // What can't do without one of them says so itself.
      const reason = await installByApt(missing);
      return { note: reason, failed: reason !== undefined };
    });
  }
  if (onPath("ccache")) {
    process.env.CMAKE_CXX_COMPILER_LAUNCHER ??= "ccache";
    // The package is built a second time in another folder: let that hit.
    process.env.CCACHE_BASEDIR ??= "/";
    process.env.CCACHE_NOHASHDIR ??= "1";
    // There HOME is another one, too.
    const { code, output } = await run("ccache", ["--get-config", "cache_dir"], { mayFail: true });
    if (code === 0) process.env.CCACHE_DIR ??= output.trim();
  }
}

/** @returns why the tools to compile for that processor can't be had; undefined when they are here */
async function bringCrossTools(name) {
  if (missingCrossTools(name).length === 0) return undefined;
  const { packages } = crossTargets[name];
  const title = `apt-get install ${packages.join(" ")}`;
  const { note: reason } = await step(title, async () => ({ note: await installByApt(packages) }));
  const missing = missingCrossTools(name);
  return missing.length === 0 ? undefined : `${missing.join(" and ")} not found; ${reason ?? "not in those packages"}`;
}

/** The C++ tests whose code differs on another processor, as programs of that processor in its emulator. */
async function crossCpp(name) {
  const missing = await bringCrossTools(name);
  if (missing === undefined) return runCppTests({ target: name });
  console.log(`skipped: ${missing}`);
  return { ...noCounts(), skipped: 1, skips: [`C++ tests for ${name}: ${missing}`] };
}

/** What these lanes build, as programs to call. A lane builds again what was not built, and tells why it can't be. */
const BUILDS = {
  "cpp-aarch64": ["scripts/cpp_tests.mjs", "--build", "--target", "aarch64"],
  asan: ["scripts/cpp_tests.mjs", "--build", "--sanitize", ADDRESS],
  tsan: ["scripts/cpp_tests.mjs", "--build", "--sanitize", "thread", ...THREADED_TESTS],
  "asan-js": ["scripts/native.mjs", "--out", ASAN_BUILD, `--CDKVT_SANITIZE=${ADDRESS}`],
};

/** The integration tests wait for timers and processes most of their time: behind them, compilers have the machine. */
async function buildAhead(names) {
  if (names.includes("cpp-aarch64")) await bringCrossTools("aarch64");
  const built = (async () => {
    for (const name of names) {
      await run("nice", ["-n", "19", process.execPath, ...BUILDS[name]], { cwd: root }).catch(() => undefined);
    }
  })();
  return { built };
}

async function findClangFormat() {
  const system = onPath(`clang-format-${CLANG_FORMAT}`);
  if (system) return system;
  const folder = join(root, ".cache/clang-format");
  const file = join(folder, "clang_format/data/bin/clang-format");
  if (!existsSync(file)) {
    await run("python3", [
      "-m",
      "pip",
      "install",
      "--quiet",
      "--disable-pip-version-check",
      "--root-user-action=ignore",
      "--target",
      folder,
      CLANG_FORMAT_PIP,
    ]);
  }
  return file;
}

async function checkStyle() {
  const failures = [];
  const part = async (title, body) => {
    try {
      await step(title, body);
    } catch (error) {
      failures.push(title);
      console.log(error instanceof Told ? error.message : error);
    }
  };
  const bin = (name) => join(root, "node_modules/.bin", name);
  await part("biome", () => run(bin("biome"), ["check", "."], { cwd: root }));
  await part("types", () => run(bin("tsc"), ["-p", "tsconfig.json"], { cwd: root }));
  await part("clang-format", async () => {
    const clangFormat = await findClangFormat();
    const { output } = await run("git", ["ls-files", "native/*.cc", "native/*.h", ":!native/third_party"], {
      cwd: root,
    });
    await run(clangFormat, ["--dry-run", "-Werror", ...output.trim().split("\n")], { cwd: root });
  });
  return { ...noCounts(), failed: failures.length, failures };
}

/** The addon and its JS tests under AddressSanitizer. Leaks are the C++ tests' business: V8 itself frees little when it ends. */
async function sanitizedJs() {
  const { buildNative } = await import("./native.mjs");
  const { runVitest } = await import("./vitest.mjs");
  const folder = join(root, ".cache/asan");
  await buildNative({
    out: ASAN_BUILD,
    copyTo: join(folder, "build/Release"),
    defines: [`--CDKVT_SANITIZE=${ADDRESS}`],
  });
  const runtime = async (name) => (await run(findCompiler() ?? "c++", [`-print-file-name=${name}`])).output.trim();
  const env = {
    // Node itself is not built with it, so the runtime must come first; libstdc++ too, or its exceptions are not intercepted.
    LD_PRELOAD: `${await runtime("libasan.so")} ${await runtime("libstdc++.so")}`,
    UBSAN_OPTIONS: sanitizerSettings.UBSAN_OPTIONS,
    ASAN_OPTIONS: `${sanitizerSettings.ASAN_OPTIONS}:detect_leaks=0`,
    KV_TRANSCEIVER_PREBUILD: folder, // where node-gyp-build looks first
  };
  const args = [
    "--project",
    "integration",
    "--testTimeout=300000",
    ...SANITIZED_JS.filter((path) => existsSync(join(root, path))),
  ];
  return runVitest({ title: "JS tests of the addon (address, undefined)", args, env });
}

const vitest = async (title, project, args = []) =>
  (await import("./vitest.mjs")).runVitest({ title, args: ["--project", project, ...args] });

/** Integration tests that stop, kill and wait most of their time, and are content with what processor is left. */
const WAITING = ["test/integration/faults/", "test/integration/transceiver/faults.test.ts", "test/e2e/soak/"];

/** Those beside all others, in each of both one file at a time. */
async function integration() {
  const others = WAITING.flatMap((path) => ["--exclude", path.endsWith("/") ? `${path}**` : path]);
  const both = await Promise.all([
    vitest("integration tests", "integration", others),
    vitest("integration tests of long waits", "integration", WAITING),
  ]);
  const counts = noCounts();
  for (const one of both) addCounts(counts, one);
  return counts;
}

/** The C++ tests with a real NIXL, and a third of the faults in the states of a transfer over it: all of them take three minutes a round. */
async function checkNixl() {
  const counts = noCounts();
  addCounts(counts, await runNixlTests());
  const { runVitest } = await import("./vitest.mjs");
  const args = ["--project", "integration", "test/interop/nixl_faults.test.ts"];
  addCounts(
    counts,
    await runVitest({ title: "faults over NIXL", args, env: { KVT_FAULT_ROUNDS: "1", KVT_FAULT_SHARD: "0/3" } }),
  );
  return counts;
}

const lanes = {
  style: ["style", checkStyle],
  cpp: ["C++ tests", () => runCppTests({ without: NIXL_TESTS })],
  nixl: ["NIXL", checkNixl],
  unit: ["unit tests", () => vitest("unit tests", "unit")],
  integration: ["integration tests", integration],
  "cpp-aarch64": ["C++ tests for aarch64", () => crossCpp("aarch64")],
  asan: ["C++ tests with AddressSanitizer", () => runCppTests({ sanitize: ADDRESS, without: NIXL_TESTS })],
  tsan: ["C++ tests with ThreadSanitizer", () => runCppTests({ sanitize: "thread", names: THREADED_TESTS })],
  "asan-js": ["JS tests with AddressSanitizer", sanitizedJs],
  package: ["package", checkPackage],
  clone: ["fresh clone", checkFreshClone],
};

await main(async () => {
  const chosen = process.argv.slice(2);
  const unknown = chosen.filter((name) => !Object.hasOwn(lanes, name));
  if (unknown.length > 0)
    throw new Told(`No such part: ${unknown.join(", ")}. There are: ${Object.keys(lanes).join(", ")}.`);
  await bringTools();
  await lane("build", prepare);
  if (counts.failed === 0) {
    const wanted = Object.keys(lanes).filter((name) => chosen.length === 0 || chosen.includes(name));
    let ahead;
    for (const name of wanted) {
      if (name === "integration") ahead = await buildAhead(wanted.filter((other) => Object.hasOwn(BUILDS, other)));
      if (Object.hasOwn(BUILDS, name)) await ahead?.built;
      await lane(...lanes[name]);
    }
  }
  console.log(`\ntook ${seconds(Date.now() - started)}`);
  console.log(closingSummary(counts));
  return counts.failed > 0 ? 1 : 0;
});
