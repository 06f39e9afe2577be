import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePorts } from "../../../src/cli/ports.ts";
import { buildKvt, kvtScript } from "../cli/kvt_process.ts";
import { startRouterFor } from "../router/workers_here.ts";
import { until } from "../waits.ts";
import { holdsNothing } from "../worker/inspect.ts";
import { tinyModel } from "../worker/worker_process.ts";

export const POOL_TOKENS = 1024;
export const LEASE_MS = 300;
const TRANSFER_MS = 2_000;
const START_MS = 60_000;
const preload = new URL("./worker_preload.mjs", import.meta.url).href;

export interface Reached {
  readonly reached: string;
  /** Epoch of the context worker that the transfer reads from. */
  readonly sender: string;
}
/** Where a worker stands still; see Fault in peer_process.ts. */
export interface Stop {
  readonly role: "receiver";
  readonly to: string;
  readonly event?: string;
  /** Who would read the DONE: stopped before it is written. */
  readonly reader: readonly number[];
}
interface Message extends Partial<Reached> {
  readonly opened?: string;
  readonly done?: true;
}

const isStopped = (pid: number): boolean => / [Tt] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));

/** One `kvt serve` that can be hit; a new process under the same port after each start. */
export class FleetWorker {
  readonly url: string;
  readonly role: "CONTEXT" | "GENERATION" | null;
  readonly #folder: string;
  child!: ChildProcess;
  epoch = "";
  #output = "";
  #onMessage: (message: Message) => void = () => {};
  #onExit: () => void = () => {};

  constructor(folder: string, port: number, role: FleetWorker["role"]) {
    this.#folder = folder;
    this.role = role;
    this.url = `http://localhost:${port}`;
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  get output(): string {
    return this.#output;
  }

  async start(): Promise<void> {
    const flags = this.role === null ? [] : ["--server_role", this.role];
    const argv = ["serve", tinyModel, "--port", new URL(this.url).port, "--config", join(this.#folder, "worker.yaml")];
    const all = [...argv, "--kvt_config", join(this.#folder, "kvt.yaml"), ...flags];
    this.child = spawn(process.execPath, ["--import", preload, kvtScript, ...all], {
      env: { ...process.env, KVT_SOCKET_DIR: join(this.#folder, "sockets"), KVT_CHECK: "1", NO_COLOR: "1" },
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    this.#output = "";
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.on("data", (bytes: Buffer) => {
        this.#output += bytes.toString();
      });
    }
    this.child.on("message", (message: Message) => this.#onMessage(message));
    this.child.on("exit", () => this.#onExit());
    this.epoch = (await this.#heard(({ opened }) => opened !== undefined)).opened ?? "";
    await until(
      `${this.url} is healthy`,
      async () => (await fetch(`${this.url}/health`).catch(() => null))?.status === 200,
      START_MS,
    );
  }

  async tell(what: { readonly arm?: Stop | null; readonly cut?: true }): Promise<void> {
    const done = this.#heard((message) => message.done === true);
    this.child.send(what);
    await done;
  }

  /** Cuts its control connections; one that stands still does so when it runs again. */
  async cut(): Promise<void> {
    if (isStopped(this.pid)) this.child.send({ cut: true });
    else await this.tell({ cut: true });
  }

  async reached(): Promise<Reached> {
    const { reached = "", sender = "" } = await this.#heard((message) => message.reached !== undefined);
    await this.stopped();
    return { reached, sender };
  }

  stopped = (): Promise<unknown> => until("it stands still", async () => isStopped(this.pid));

  async kill(): Promise<void> {
    if (!this.running) return;
    const exited = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await exited;
  }

  /** The next message like this, for the last who asked; a process that ends first is an error. */
  #heard(isIt: (message: Message) => boolean): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.#onMessage = (message) => {
        if (isIt(message)) resolve(message);
      };
      this.#onExit = () => reject(new Error(`${this.url} has ended:\n${this.#output}`));
    });
  }
}

interface FleetOptions {
  readonly count: number;
  readonly verify: "sampled" | "full";
}
export type Router = Awaited<ReturnType<typeof startRouterFor>>;

/** Context and generation workers, all `kvt serve` with a lease of 300 ms, and real routers in front of them. */
export class WorkerFleet implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "kvt-fleet-"));
  readonly #all: FleetWorker[] = [];
  contexts: readonly FleetWorker[] = [];
  generations: readonly FleetWorker[] = [];

  /** @param options.count workers of each role */
  static async start({ count, verify }: FleetOptions): Promise<WorkerFleet> {
    buildKvt();
    const fleet = new WorkerFleet();
    mkdirSync(join(fleet.#folder, "sockets"), { mode: 0o700 });
    const cache = `kv_cache_config:\n  max_tokens: ${POOL_TOKENS}\n  enable_block_reuse: false\n`;
    const transfer = `cache_transceiver_config:\n  backend: DEFAULT\n  kv_transfer_timeout_ms: ${TRANSFER_MS}\n`;
    writeFileSync(join(fleet.#folder, "worker.yaml"), cache + transfer);
    writeFileSync(join(fleet.#folder, "kvt.yaml"), `lease:\n  leaseMs: ${LEASE_MS}\ntransfer:\n  verify: ${verify}\n`);
    try {
      const workers = await Promise.all(
        Array.from({ length: 2 * count }, (_, index) => fleet.add(index < count ? "CONTEXT" : "GENERATION")),
      );
      fleet.contexts = workers.slice(0, count);
      fleet.generations = workers.slice(count);
      return fleet;
    } catch (error) {
      await fleet[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Resolves when all workers are ready, whoever has ended started again. A new one remembers no failures. */
  async router(): Promise<Router> {
    for (const worker of this.workers) if (!worker.running) await worker.start();
    const group = (list: readonly FleetWorker[]) =>
      ({ servers: list.map(({ url }) => ({ url, origin: url })), policy: "round_robin" }) as const;
    const [first, second] = [this.contexts[0] as FleetWorker, this.generations[0] as FleetWorker];
    return await startRouterFor(first, second, { context: group(this.contexts), generation: group(this.generations) });
  }

  get workers(): readonly FleetWorker[] {
    return [...this.contexts, ...this.generations];
  }

  async add(role: FleetWorker["role"]): Promise<FleetWorker> {
    const [port = 0] = await freePorts(1);
    const worker = new FleetWorker(this.#folder, port, role);
    this.#all.push(worker);
    await worker.start();
    return worker;
  }

  /** Nothing is held, nothing in quarantine, nothing under way. */
  async quiet(workers = this.workers): Promise<void> {
    await until("all blocks are free", async () => {
      const all = await Promise.all(workers.map(holdsNothing));
      return all.every((isSo) => isSo);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#all.map((worker) => worker.kill()));
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
