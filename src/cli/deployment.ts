import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseDocument } from "yaml";
import { KvError } from "../errors.ts";
import { waitUntilHealthy } from "./ask.ts";
import { packageFile } from "./package_files.ts";

const kvt = packageFile("bin/kvt.js");
const HEALTH_PERIOD_MS = 100;
const GRACE_MS = 10_000;
const LOG_TAIL_BYTES = 2_000;

export interface Member {
  /** `context 1`, `router`: for people. */
  readonly name: string;
  readonly url: string;
  readonly pid: number;
  readonly port: number;
  readonly logFile: string;
}

export interface MemberOptions {
  readonly name: string;
  readonly port: number;
  /** After `kvt`: `["serve", model, "--config", file]`; the port is given here too where the command takes one. */
  readonly arguments: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

interface Started {
  readonly member: Member;
  readonly child: ChildProcess;
  /** Settles when the process has ended, with its exit code or the signal's name. */
  readonly ended: Promise<number | string>;
  hasEnded: boolean;
}

/** Processes of one deployment on this host, and the folder of their logs. Whatever happens, `stop()` ends all of them. */
export class Deployment {
  /** Holds logs, generated YAML and the unix sockets; removed by `stop()`. */
  readonly folder: string;
  readonly #started: Started[] = [];
  readonly #env: Readonly<Record<string, string | undefined>>;

  constructor(env: Readonly<Record<string, string | undefined>>) {
    this.folder = mkdtempSync(join(tmpdir(), "kvt-demo-"));
    mkdirSync(join(this.folder, "sockets"), { mode: 0o700 });
    this.#env = env;
  }

  /** Starts one process; it is not ready yet when this returns. */
  start(options: MemberOptions): Member {
    const logFile = join(this.folder, `${options.name.replaceAll(" ", "_")}.log`);
    const log = openSync(logFile, "w");
    // In our process group: a terminal's Ctrl-C and hang-up reach all of them even if we are gone.
    const child = spawn(process.execPath, [kvt, ...options.arguments], {
      // The channel carries nothing: its end tells the child that we are gone, even by SIGKILL.
      stdio: ["ignore", log, log, "ipc"],
      env: { ...this.#env, KVT_SOCKET_DIR: join(this.folder, "sockets"), ...options.env },
    });
    closeSync(log);
    const member: Member = {
      name: options.name,
      url: `http://localhost:${options.port}`,
      pid: child.pid ?? 0,
      port: options.port,
      logFile,
    };
    const ended = new Promise<number | string>((resolve) => {
      child.once("error", (error) => resolve(error.message));
      child.once("exit", (code, signal) => resolve(code ?? signal ?? "unknown"));
    });
    const started: Started = { member, child, ended, hasEnded: false };
    void ended.then(() => {
      started.hasEnded = true;
    });
    this.#started.push(started);
    return member;
  }

  /**
   * Waits until `/health` of a member answers 200.
   * @throws KvError MEMBER_ENDED when its process ends first, START_TIMEOUT when `timeoutMs` is over
   */
  async ready(member: Member, timeoutMs: number, signal: AbortSignal): Promise<void> {
    const started = this.#started.find((other) => other.member === member);
    if (!started) throw new KvError("INTERNAL", { where: "deployment", why: `${member.name} was not started here` });
    const stopWaiting = new AbortController();
    const healthy = waitUntilHealthy(
      member.url,
      timeoutMs,
      HEALTH_PERIOD_MS,
      AbortSignal.any([signal, stopWaiting.signal]),
    );
    const first = await Promise.race([healthy, started.ended.then((outcome) => ({ outcome }))]);
    stopWaiting.abort();
    signal.throwIfAborted();
    if (typeof first === "object") {
      const { outcome } = first;
      throw new KvError("MEMBER_ENDED", { name: member.name, outcome, log: tail(member.logFile) });
    }
    if (!first) throw new KvError("START_TIMEOUT", { seconds: timeoutMs / 1000, missing: member.name });
  }

  /**
   * Ends the given members, or all: SIGTERM, and SIGKILL for one that is still there after 10 s.
   * @returns how many processes were ever started
   */
  async stop(members?: readonly Member[]): Promise<number> {
    const chosen = this.#started.filter(({ member }) => members === undefined || members.includes(member));
    await Promise.all(chosen.map(end));
    if (members === undefined) rmSync(this.folder, { recursive: true, force: true });
    return this.#started.length;
  }

  /** For the exit handler: no time is left to be polite. */
  killAll(): void {
    for (const { child, hasEnded } of this.#started) if (!hasEnded) child.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Writes a router file like `source` but with other ports, and returns its path. */
  routerFile(
    source: string,
    ports: { readonly router: number; readonly context: readonly number[]; readonly generation: readonly number[] },
  ): string {
    const document = parseDocument(readFileSync(source, "utf8"));
    const urls = (list: readonly number[]): string[] => list.map((port) => `localhost:${port}`);
    document.set("port", ports.router);
    document.setIn(["context_servers", "num_instances"], ports.context.length);
    document.setIn(["context_servers", "urls"], urls(ports.context));
    document.setIn(["generation_servers", "num_instances"], ports.generation.length);
    document.setIn(["generation_servers", "urls"], urls(ports.generation));
    const file = join(this.folder, `disagg_config_${ports.router}.yaml`);
    writeFileSync(file, document.toString());
    return file;
  }
}

async function end(started: Started): Promise<void> {
  if (started.hasEnded) return;
  started.child.kill("SIGTERM");
  const timer = setTimeout(() => started.child.kill("SIGKILL"), GRACE_MS);
  await started.ended;
  clearTimeout(timer);
}

function tail(file: string): string {
  try {
    return readFileSync(file, "utf8").slice(-LOG_TAIL_BYTES).trim();
  } catch {
    return "(no log)";
  }
}
