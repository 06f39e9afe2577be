import { type ChildProcess, execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { OpenOptions, TransceiverStats, TransferReport } from "../../../src/transceiver/api.ts";
import type { ReceiverState } from "../../../src/transceiver/receiver_table.ts";
import type { SenderState } from "../../../src/transceiver/sender_table.ts";
import { until } from "../waits.ts";

const root = new URL("../../../", import.meta.url).pathname;

export const layout = {
  layers: 2,
  kvHeads: 2,
  headDim: 16,
  dtype: "f32",
  tokensPerBlock: 32,
  attention: "gqa",
} as const;
export const BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 4;
export const BLOCKS = 64;
export const POOL_TOKENS = BLOCKS * layout.tokensPerBlock;
/** In peer_entry.mjs too. */
export const BLOCK_MS = 2_000;

export interface Ended {
  readonly report?: TransferReport;
  readonly code?: string;
  readonly message?: string;
}
export interface Received extends Ended {
  readonly wrong: number;
  readonly seen: readonly number[];
}
export interface Resources {
  readonly fds: number;
  readonly maps: number;
  readonly rssAnonKib: number;
}
/**
 * Fired inside the process that is told so, in the step that leads to the state, before its effects. POSTED: a read was given to the data
 * plane · DONE_WRITTEN: the receiver's DONE has left, and `reader`, stopped before, has not read it.
 */
export interface Fault {
  readonly role: "sender" | "receiver";
  readonly to: SenderState | ReceiverState | "POSTED" | "DONE_WRITTEN";
  readonly reader?: number;
  readonly event?: string;
  /** Default: the process itself. */
  readonly pid?: number;
  /** block: its JavaScript thread does nothing for BLOCK_MS; of a session's step, once what the step wrote has left. */
  readonly act?: "SIGKILL" | "SIGSTOP" | "exit" | "block";
  /** Tells the test too: await `reached()`. */
  readonly say?: boolean;
}

interface Answer {
  readonly call?: number;
  readonly value?: unknown;
  readonly error?: string;
  readonly reached?: string;
  readonly arrived?: string;
  readonly started?: boolean;
}

/** A transceiver in a process of its own. */
export class Peer {
  readonly child: ChildProcess;
  readonly exited: Promise<unknown>;
  readonly #calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  readonly #waiting = new Map<string, (() => void)[]>();
  readonly #told = new Set<string>();
  #lastCall = 0;
  log = "";
  endpoints: { readonly tcp: string; readonly unix: string | null } = { tcp: "", unix: null };
  infoEndpoints: readonly string[] = [];
  pid = 0;

  constructor(child: ChildProcess) {
    this.child = child;
    this.exited = once(child, "exit");
    child.stderr?.on("data", (bytes: Buffer) => {
      this.log += bytes.toString();
    });
    child.on("message", (message: Answer) => this.#take(message));
    child.on("exit", () => {
      for (const call of this.#calls.values()) call.reject(new Error(`the peer has ended\n${this.log}`));
      this.#calls.clear();
    });
  }

  /** A call that the process may not live to answer is awaited only by who wants the answer. */
  call<Value>(name: string, argument: object = {}): Promise<Value> {
    const call = ++this.#lastCall;
    const answer = new Promise<unknown>((resolve, reject) => this.#calls.set(call, { resolve, reject }));
    answer.catch(() => {});
    this.child.send({ call, name, argument }, () => {});
    return answer as Promise<Value>;
  }

  send(options: { request: number; tokens: number; ready?: number; seed?: number }): Promise<{ state: string }> {
    return this.call("send", { seed: options.request, ...options });
  }

  sent = (request: number): Promise<Ended> => this.call("sent", { request });
  received = (id: number, seed = id): Promise<Received> => this.call("received", { id, seed });
  stats = (): Promise<TransceiverStats> => this.call("stats");
  resources = (): Promise<Resources> => this.call("resources");
  arm = (fault: Fault | null): Promise<void> => this.call("arm", fault ?? { role: "none" });

  async receive(options: { id: number; state: string; tokens: number; skipTokens?: number }): Promise<void> {
    await this.call("receive", options);
  }

  /** Begins to fetch what `sender` offers at once, as the request `id` of both. */
  async fetch(sender: Peer, options: { id: number; tokens: number; skipTokens?: number }): Promise<void> {
    const { state } = await sender.send({ request: options.id, tokens: options.tokens });
    await this.receive({ ...options, state });
  }

  /** Before there is an offer: of request `id`. */
  async receiveFrom(endpoints: readonly string[], options: { id: number; tokens: number }): Promise<void> {
    await this.call("receive", { peer: { instance: "peer", endpoints }, ...options });
  }

  reached = (state: string): Promise<void> => this.#heard(`reached ${state}`);
  /** The progress of a receive has come to `tokens`. */
  arrived = (id: number, tokens: number): Promise<void> => this.#heard(`arrived ${id} ${tokens}`);

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  #heard(what: string): Promise<void> {
    if (this.#told.delete(what)) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.set(what, [...(this.#waiting.get(what) ?? []), resolve]));
  }

  #take(message: Answer): void {
    if (message.reached !== undefined) this.#tell(`reached ${message.reached}`);
    if (message.arrived !== undefined) this.#tell(`arrived ${message.arrived}`);
    const call = this.#calls.get(message.call ?? -1);
    if (call === undefined) return;
    this.#calls.delete(message.call ?? -1);
    if (message.error !== undefined) call.reject(new Error(message.error));
    else call.resolve(message.value);
  }

  #tell(what: string): void {
    const waiting = this.#waiting.get(what);
    if (waiting === undefined) this.#told.add(what);
    this.#waiting.delete(what);
    for (const wake of waiting ?? []) wake();
  }
}

/** Starts peers with one socket directory, so that they find each other, and ends them all. */
export class Peers implements AsyncDisposable {
  readonly socketDir = mkdtempSync(join(tmpdir(), "kvt-peers-"));
  readonly #running = new Set<Peer>();

  /** @param entry a command line that starts the process where it is to live, "nsenter ..." for one */
  async open(options: Partial<OpenOptions> = {}, hooked = true, entry: readonly string[] = []): Promise<Peer> {
    const peer = this.start("peer_entry.mjs", entry);
    const all = { layout, pool: { memory: "host", blocks: BLOCKS }, socketDir: this.socketDir, ...options };
    const opened = await peer.call<Pick<Peer, "endpoints" | "infoEndpoints" | "pid">>("open", { options: all, hooked });
    peer.infoEndpoints = opened.infoEndpoints;
    peer.endpoints = opened.endpoints;
    peer.pid = opened.pid;
    return peer;
  }

  /** A process that answers the calls of this file beside us; nothing is open in it yet. */
  start(file: "peer_entry.mjs" | "placed_entry.mjs", entry: readonly string[] = []): Peer {
    buildIfStale();
    const [execPath, ...execArgv] = [...entry, process.execPath];
    const child = fork(join(root, "test/integration/transceiver", file), {
      stdio: ["ignore", "inherit", "pipe", "ipc"],
      env: { ...process.env, KVT_CHECK: "1" },
      ...(entry.length === 0 ? {} : { execPath, execArgv }),
    });
    const peer = new Peer(child);
    this.#running.add(peer);
    return peer;
  }

  async killAllBut(spared: Peer): Promise<void> {
    const others = [...this.#running].filter((peer) => peer !== spared && peer.running);
    await Promise.all(others.map((peer) => peer.kill()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#running].filter((peer) => peer.running).map((peer) => peer.kill()));
    rmSync(this.socketDir, { recursive: true, force: true });
  }
}

/** By SIGSTOP, however it comes: a SIGCONT that came before it would be lost. */
export const stopped = (peer: Peer): Promise<unknown> =>
  until("it has stopped", async () => / T /.test(readFileSync(`/proc/${peer.pid}/stat`, "utf8")));

let built = false;
/** `npm test` builds first; a developer who runs one file should not test an old dist/. */
export function buildIfStale(): void {
  if (built) return;
  built = true;
  const newest = (folder: string): number =>
    Math.max(
      ...readdirSync(folder, { withFileTypes: true }).map((entry) =>
        entry.isDirectory() ? newest(join(folder, entry.name)) : statSync(join(folder, entry.name)).mtimeMs,
      ),
    );
  const output = statSync(join(root, "dist/.tsbuildinfo"), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (newest(join(root, "src")) > output) {
    execFileSync(process.execPath, [
      join(root, "node_modules/typescript/bin/tsc"),
      "-p",
      join(root, "tsconfig.build.json"),
    ]);
  }
}
