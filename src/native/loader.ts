import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { threadId } from "node:worker_threads";
import { KvError } from "../errors.ts";
import { mirrorVersion, type NativeBinding } from "./binding.ts";

const require = createRequire(import.meta.url);
/** src/native and dist/native lie equally deep. */
const packageRoot = fileURLToPath(new URL("../..", import.meta.url));
const SMOKE_TIMEOUT_MS = 20_000;
const SMOKE_MARK = "kv-transceiver addon:";

/** Runs in a child: a binary of another machine or a broken one may crash or hang whoever loads it, and that must not be us. */
const SMOKE_SOURCE = `
const module_ = { exports: {} };
let answer;
try {
  process.dlopen(module_, process.argv[1]);
  answer = { mirrorVersion: module_.exports.mirrorVersion ?? null };
} catch (error) {
  answer = { error: String(error.message) };
}
require("node:fs").writeSync(1, ${JSON.stringify(SMOKE_MARK)} + JSON.stringify(answer) + "\\n");
process.exit(0);
`;

let loaded: NativeBinding | undefined;

/**
 * The addon, loaded on first use and kept. A first load of a new binary costs one child process (about 50 ms); its verdict is
 * remembered for this user, by path, size and time of change.
 * @throws KvError NATIVE_NOT_FOUND, NATIVE_BROKEN (both with a numbered list of remedies)
 */
export function loadNative(): NativeBinding {
  loaded ??= loadNativeFrom(packageRoot);
  return loaded;
}

/** The addon's file, for a child process that tries something with it. @throws KvError NATIVE_NOT_FOUND, NATIVE_BROKEN */
export function nativeFile(): string {
  loadNative();
  return findAddon(packageRoot);
}

/** @internal loadNative for the package at `root`; `cacheDir` null remembers nothing. */
export function loadNativeFrom(root: string, cacheDir: string | null = verdictDir()): NativeBinding {
  const file = findAddon(root);
  const verdict = new Verdict(file, cacheDir);
  if (!verdict.knownGood()) {
    const why = smokeTest(file);
    if (why !== undefined) throw broken(file, why);
    verdict.remember();
  }
  let binding: NativeBinding;
  try {
    binding = require(file) as NativeBinding;
  } catch (error) {
    throw broken(file, error instanceof Error ? error.message : String(error), { cause: error });
  }
  // The remembered verdict may be older than this source.
  if (binding.mirrorVersion !== mirrorVersion) throw broken(file, mirrorMismatch(binding.mirrorVersion));
  return binding;
}

function findAddon(root: string): string {
  const finder = require("node-gyp-build") as { resolve(dir: string): string };
  try {
    return finder.resolve(root);
  } catch {
    const tried = `${join(root, "build/Release")}, ${join(root, "prebuilds", `${process.platform}-${process.arch}`)}`;
    throw new KvError("NATIVE_NOT_FOUND", { tried, remedy: remedies(root) });
  }
}

/** What is wrong with the binary, or undefined when a child process could load it. */
function smokeTest(file: string): string | undefined {
  // NODE_OPTIONS may hold a debugger's port or a loader that the child does not need; LD_PRELOAD and the like stay.
  const { NODE_OPTIONS: _, ...env } = process.env;
  const child = spawnSync(process.execPath, ["-e", SMOKE_SOURCE, file], {
    env,
    encoding: "utf8",
    timeout: SMOKE_TIMEOUT_MS,
    killSignal: "SIGKILL",
    stdio: ["ignore", "pipe", "pipe"],
  });
  if (child.error !== undefined) {
    const timedOut = "code" in child.error && child.error.code === "ETIMEDOUT";
    return timedOut ? `loading it did not end within ${SMOKE_TIMEOUT_MS / 1000} s` : child.error.message;
  }
  const line = child.stdout.split("\n").find((text) => text.startsWith(SMOKE_MARK));
  if (line === undefined) {
    const end = child.signal === null ? `exit code ${child.status}` : child.signal;
    const said = child.stderr.trim().split("\n").at(-1) ?? "";
    return `a process that loaded it ended with ${end}${said === "" ? "" : ` (${said})`}`;
  }
  const answer = JSON.parse(line.slice(SMOKE_MARK.length)) as { error?: string; mirrorVersion?: number | null };
  if (answer.error !== undefined) return answer.error;
  return answer.mirrorVersion === mirrorVersion ? undefined : mirrorMismatch(answer.mirrorVersion);
}

const mirrorMismatch = (found: unknown): string =>
  typeof found === "number"
    ? `it was built for version ${found} of the addon's interface, this package needs ${mirrorVersion}`
    : "it is not kv-transceiver's addon";

const broken = (file: string, why: string, options?: ErrorOptions): KvError =>
  new KvError("NATIVE_BROKEN", { file, why, remedy: remedies(packageRootOf(file)) }, options);

/** The package that holds an addon file: the folder above build/ or prebuilds/. */
const packageRootOf = (file: string): string => file.replace(/[/\\](build|prebuilds)[/\\].*$/, "");

function remedies(root: string): string {
  const installed = /[/\\]node_modules[/\\]/.test(`${root}/`);
  const build = installed ? "npm rebuild kv-transceiver --build-from-source" : "npm run build:native";
  return [
    "one of these helps:",
    `1. build it for this machine: \`${build}\` (needs a C++20 compiler and make; on Debian and Ubuntu: apt install g++ make)`,
    "2. if the file came from another machine or image, delete node_modules (or build/) and install again here",
    `3. check that Node.js is >= 20.19 for ${process.platform}-${process.arch}; this one is ${process.version}`,
    "4. to run only the router (`kvt disaggregated`), nothing: it needs no addon",
  ].join("\n  ");
}

/** A binary known to load, remembered per user. Only good verdicts are kept: a broken one may be cured by what is outside the file. */
class Verdict {
  readonly #file: string | undefined;
  readonly #content: string;

  constructor(addon: string, cacheDir: string | null) {
    const { mtimeMs, size } = statSync(addon);
    this.#content = JSON.stringify([addon, mtimeMs, size, process.version, process.arch, mirrorVersion]);
    const name = createHash("sha256").update(addon).digest("hex").slice(0, 16);
    this.#file = cacheDir === null ? undefined : join(cacheDir, `addon-${name}.json`);
  }

  knownGood(): boolean {
    if (this.#file === undefined) return false;
    try {
      return readFileSync(this.#file, "utf8") === this.#content;
    } catch {
      return false;
    }
  }

  remember(): void {
    if (this.#file === undefined) return;
    try {
      mkdirSync(dirname(this.#file), { recursive: true, mode: 0o700 });
      const draft = `${this.#file}.${process.pid}-${threadId}`;
      writeFileSync(draft, this.#content, { mode: 0o600 });
      renameSync(draft, this.#file);
    } catch {
      // A read-only home costs the next start one child process, nothing else.
    }
  }
}

/** Below the user's own home only: a verdict that another user could write would defeat the test. */
function verdictDir(): string | null {
  const { XDG_CACHE_HOME: cache } = process.env;
  if (cache?.startsWith("/")) return join(cache, "kv-transceiver");
  try {
    return join(homedir(), ".cache", "kv-transceiver");
  } catch {
    return null; // a uid without a passwd entry
  }
}
