import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePorts } from "../../src/cli/ports.ts";
import type { RouterSettings } from "../../src/config/settings.ts";
import { createLogger } from "../../src/observability/log.ts";
import { defaultProbeTimes } from "../../src/router/prober.ts";
import { type RouterHooks, type RouterServer, startRouter } from "../../src/router/server.ts";
import { buildKvt, type KvtProcess, startKvt } from "../integration/cli/kvt_process.ts";
import { type Fresh, smallPool, type Watched } from "../integration/worker/no_leak.ts";
import { Workers } from "../integration/worker/worker_process.ts";
import { openDoorway } from "./doorway.ts";

export const modelPath: string = fileURLToPath(new URL("../../models/tiny.gguf", import.meta.url));

export interface Golden {
  readonly name: string;
  readonly kind: "chat" | "completion";
  readonly messages?: readonly object[];
  readonly text: string;
  readonly ids: readonly number[];
  readonly output_ids: readonly number[];
  readonly output_text: string;
}

export const goldens: readonly Golden[] = (
  JSON.parse(readFileSync(new URL("../../models/golden.json", import.meta.url), "utf8")) as { prompts: Golden[] }
).prompts;

export interface DeployedWorker extends Watched {
  readonly url: string;
  readonly process: KvtProcess;
  /** Blocks that nobody holds or pins, and transfers under way, as GET /kv/peers has them. */
  stats(): Promise<WorkerStats>;
}

export interface WorkerStats {
  readonly blocks: { readonly total: number; readonly free: number; readonly held: number; readonly pinned: number };
  readonly sends: { readonly open: number; readonly waiting: number };
  readonly receives: { readonly open: number };
}

/** Real worker processes and a router in this process, on free ports of this host. */
export interface Deployed extends AsyncDisposable {
  readonly router: RouterServer;
  readonly context: readonly DeployedWorker[];
  readonly generation: readonly DeployedWorker[];
  readonly log: readonly Readonly<Record<string, unknown>>[];
  post(path: string, body: object, init?: RequestInit): Promise<Response>;
  /** A worker beside them that the router does not know, with the smallest pool. */
  startFresh(): Promise<Fresh>;
}

export interface DeployOptions {
  readonly context: number;
  readonly generation: number;
  /** Tokens that each worker's KV pool holds. */
  readonly poolTokens?: number;
  /** max_tokens_in_buffer. */
  readonly bufferTokens?: number;
  /** More of `kvt serve`'s flags, for the workers of each side. */
  readonly flags?: { readonly context: readonly string[]; readonly generation: readonly string[] };
  readonly settings?: Partial<RouterSettings>;
  readonly hooks?: RouterHooks;
  /** For the workers. */
  readonly env?: Readonly<Record<string, string>>;
  /** Network namespaces that the workers live in; then they share no socket directory. */
  readonly places?: Readonly<Record<Role, { readonly entry: readonly string[]; readonly address: string }>>;
}

type Role = "context" | "generation";

export async function deploy(options: DeployOptions): Promise<Deployed> {
  buildKvt();
  const folder = mkdtempSync(join(tmpdir(), "kvt-e2e-"));
  const sockets = join(folder, "sockets");
  mkdirSync(sockets, { mode: 0o700 });
  const config = join(folder, "worker.yaml");
  const buffer = options.bufferTokens === undefined ? "" : `  max_tokens_in_buffer: ${options.bufferTokens}\n`;
  writeFileSync(
    config,
    `cache_transceiver_config:\n  backend: DEFAULT\n${buffer}kv_cache_config:\n  max_tokens: ${options.poolTokens ?? 8192}\n`,
  );
  const ports = await freePorts(options.context + options.generation);
  const roleOf = (index: number): Role => (index < options.context ? "context" : "generation");
  const doors = await Promise.all(
    ports.map((port, index) => {
      const place = options.places?.[roleOf(index)];
      return place && openDoorway(place.entry, port, join(folder, `door-${index}`));
    }),
  );
  const workers = ports.map((port, index): DeployedWorker => {
    const url = `http://localhost:${doors[index]?.port ?? port}`;
    const place = options.places?.[roleOf(index)];
    const own = join(folder, `own-${index}`);
    const flags = [...(options.flags?.[roleOf(index)] ?? [])];
    if (place !== undefined) {
      mkdirSync(own, { mode: 0o700 });
      writeFileSync(join(own, "kvt.yaml"), `control: {host: ${place.address}}\n`);
      flags.push("--kvt_config", join(own, "kvt.yaml"));
    }
    const process = startKvt(
      ["serve", modelPath, "--port", String(port), "--config", config, ...flags],
      {
        KVT_SOCKET_DIR: place === undefined ? sockets : own,
        KVT_CHECK: "1",
        KVT_LOG_LEVEL: "info",
        ...options.env,
      },
      place?.entry,
    );
    return {
      url,
      process,
      child: process.child,
      log: process.output,
      stats: async () => (await (await fetch(`${url}/kv/peers`)).json()) as WorkerStats,
    };
  });
  const group = (list: readonly DeployedWorker[]) =>
    ({ servers: list.map(({ url }) => ({ url, origin: url })), policy: "round_robin" }) as const;
  const context = workers.slice(0, options.context);
  const generation = workers.slice(options.context);
  const beside = new Workers(sockets);
  const log: Readonly<Record<string, unknown>>[] = [];
  const end = async (): Promise<void> => {
    for (const { process } of workers) {
      process.child.kill("SIGCONT");
      process.child.kill("SIGKILL");
    }
    const parts = [beside, ...doors.flatMap((door) => door ?? [])];
    await Promise.all([
      ...workers.map(({ process }) => process.ended),
      ...parts.map((part) => part[Symbol.asyncDispose]()),
    ]);
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    const router = await startRouter(
      {
        host: "127.0.0.1",
        port: 0,
        logLevel: "info",
        model: null,
        strictModel: false,
        context: group(context),
        generation: group(generation),
        scheduleStyle: "context_first",
        maxRetries: 1,
        nodeId: 7,
        allowRequestChatTemplate: false,
        serverStartTimeoutMs: 50_000,
        requestTimeoutMs: 30_000,
        metricsLogIntervalMs: 0,
        perfMetricsMaxRequests: 0,
        maxBodyBytes: 64 << 20,
        authToken: null,
        ...options.settings,
      },
      {
        log: createLogger({
          name: "router",
          level: "info",
          stream: { write: (line) => void log.push(JSON.parse(line)) },
        }),
        probe: { ...defaultProbeTimes, intervalMs: 200 },
        ...options.hooks,
      },
    );
    await Promise.race([router.ready, ...workers.map(({ process }) => failWhenEnded(process))]);
    return {
      router,
      context,
      generation,
      log,
      post: (path, body, init = {}) =>
        fetch(`${router.url}${path}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
          ...init,
        }),
      startFresh: () => beside.start(smallPool),
      [Symbol.asyncDispose]: async () => {
        await router.close({ drainMs: 0 });
        await end();
      },
    };
  } catch (error) {
    await end();
    throw error;
  }
}

async function failWhenEnded(process: KvtProcess): Promise<never> {
  const outcome = await process.ended;
  throw new Error(`a worker ended (${outcome}): ${process.output()}`);
}
