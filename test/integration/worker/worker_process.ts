import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { WorkerSettings } from "../../../src/config/settings.ts";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { transceiverDefaults } from "./transceiver_defaults.ts";

const root = new URL("../../../", import.meta.url).pathname;
export const tinyModel = join(root, "models/tiny.gguf");

/** Overrides of a worker's settings; `hooks` go to startWorker. */
export type Overrides = Partial<WorkerSettings> & {
  readonly hooks?: { readonly requestReadMs?: number; readonly stallMs?: number };
};

const { kvCache } = defaultWorkerSettings(tinyModel);
/** All blocks are free when nothing runs. */
export const withoutReuse: Overrides = { kvCache: { ...kvCache, enableBlockReuse: false } };
export const withPool = (maxTokens: number, more: Partial<WorkerSettings["kvCache"]> = {}): Overrides => ({
  kvCache: { ...kvCache, maxTokens, ...more },
});

export interface WorkerProcess {
  readonly url: string;
  readonly child: ChildProcess;
  readonly log: () => string;
  /** SIGTERM; answers the exit code. */
  stop(): Promise<number | null>;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
}

/** Starts real worker processes from dist/ and ends them all. One socket directory for all, so that they find each other. */
export class Workers implements AsyncDisposable {
  readonly #ownDir = mkdtempSync(join(tmpdir(), "kvt-workers-"));
  readonly #socketDir: string;
  readonly #running = new Set<WorkerProcess>();

  /** `socketDir`: of others that they shall find; not removed. */
  constructor(socketDir?: string) {
    this.#socketDir = socketDir ?? this.#ownDir;
  }

  async start(overrides: Overrides = {}, env: NodeJS.ProcessEnv = {}): Promise<WorkerProcess> {
    buildIfStale();
    const settings = {
      model: tinyModel,
      host: "127.0.0.1",
      port: 0,
      logLevel: "info",
      transceiver: transceiverDefaults,
      socketDir: this.#socketDir,
      ...overrides,
    };
    const entry = join(root, "test/integration/worker/worker_entry.mjs");
    const child = spawn(process.execPath, [entry, JSON.stringify(settings)], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, KVT_CHECK: "1", ...env },
    });
    let log = "";
    child.stderr?.on("data", (bytes: Buffer) => {
      log += bytes.toString();
    });
    const exited = once(child, "exit");
    const line = await Promise.race([
      firstLine(child),
      exited.then(() => {
        throw new Error(`the worker ended before it listened:\n${log}`);
      }),
    ]);
    const { url } = JSON.parse(line) as { url: string };
    const worker: WorkerProcess = {
      url,
      child,
      log: () => log,
      stop: async () => {
        child.kill("SIGTERM");
        await exited;
        this.#running.delete(worker);
        return child.exitCode;
      },
      kill: async () => {
        child.kill("SIGKILL");
        await exited;
        this.#running.delete(worker);
      },
    };
    this.#running.add(worker);
    return worker;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#running].map((worker) => worker.kill()));
    rmSync(this.#ownDir, { recursive: true, force: true });
  }
}

async function firstLine(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error("no stdout");
  const [line] = (await once(createInterface(child.stdout), "line")) as [string];
  return line;
}

let isFresh = false;

/** `npm test` builds first; a developer who runs one file should not test an old dist/. */
function buildIfStale(): void {
  if (isFresh) return;
  isFresh = true;
  const newest = Math.max(
    ...readdirSync(join(root, "src"), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => statSync(join(entry.parentPath, entry.name)).mtimeMs),
  );
  const built = statSync(join(root, "dist/worker/server.js"), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (built > newest) return;
  execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", join(root, "tsconfig.build.json")], { stdio: "inherit" });
}
