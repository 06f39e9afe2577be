import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RouterSettings, WorkerSettings } from "../../../src/config/settings.ts";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { createLogger } from "../../../src/observability/log.ts";
import { type RouterServer, startRouter } from "../../../src/router/server.ts";
import { startWorker, type WorkerHooks, type WorkerServer } from "../../../src/worker/server.ts";
import { transceiverDefaults } from "../worker/transceiver_defaults.ts";
import { tinyModel } from "../worker/worker_process.ts";

/** A context worker, a generation worker and a router, all real, in this process: so that a test can act in the very step it waits for. */
export interface Here extends AsyncDisposable {
  readonly context: WorkerServer;
  readonly generation: WorkerServer;
  readonly router: RouterServer;
  /** Where a worker of another process finds these. */
  readonly socketDir: string;
}

export interface HereOptions {
  readonly context?: { readonly settings?: Partial<WorkerSettings>; readonly hooks?: WorkerHooks };
  readonly generation?: { readonly settings?: Partial<WorkerSettings>; readonly hooks?: WorkerHooks };
  readonly router?: Partial<RouterSettings>;
  /** Both workers serve both roles. */
  readonly mixed?: boolean;
}

const silent = createLogger({ name: "test", level: "fatal" });

export async function startHere(options: HereOptions = {}): Promise<Here> {
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-here-"));
  const worker = (side: HereOptions["context"]): Promise<WorkerServer> => {
    const defaults = defaultWorkerSettings(tinyModel);
    const settings: WorkerSettings = {
      ...defaults,
      host: "127.0.0.1",
      port: 0,
      transceiver: transceiverDefaults,
      // All blocks are free when nothing runs.
      kvCache: { ...defaults.kvCache, enableBlockReuse: false, maxTokens: 4096 },
      socketDir,
      ...side?.settings,
    };
    return startWorker(settings, { log: silent, ...side?.hooks });
  };
  const context = await worker(options.context);
  const generation = await worker(options.generation);
  const router = await startRouterFor(context, generation, {
    ...(options.mixed === true ? bothRoles(context, generation) : {}),
    ...options.router,
  });
  return {
    context,
    generation,
    router,
    socketDir,
    [Symbol.asyncDispose]: async () => {
      await router[Symbol.asyncDispose]();
      await Promise.all([context, generation].map((server) => server.close({ drainMs: 0 })));
      rmSync(socketDir, { recursive: true, force: true });
    },
  };
}

function bothRoles(...workers: readonly WorkerServer[]): Pick<RouterSettings, "context" | "generation"> {
  const group = { servers: workers.map(({ url }) => ({ url, origin: url })), policy: "round_robin" } as const;
  return { context: group, generation: group };
}

/** A router in this process in front of one worker of each role, wherever they run. */
export async function startRouterFor(
  context: { readonly url: string },
  generation: { readonly url: string },
  settings: Partial<RouterSettings> = {},
): Promise<RouterServer & AsyncDisposable> {
  const servers = ({ url }: { readonly url: string }) =>
    ({ servers: [{ url, origin: url }], policy: "round_robin" }) as const;
  const router = await startRouter(
    {
      host: "127.0.0.1",
      port: 0,
      logLevel: "fatal",
      model: null,
      strictModel: false,
      context: servers(context),
      generation: servers(generation),
      maxRetries: 1,
      nodeId: 1,
      scheduleStyle: "context_first",
      allowRequestChatTemplate: false,
      serverStartTimeoutMs: 10_000,
      requestTimeoutMs: 30_000,
      metricsLogIntervalMs: 0,
      perfMetricsMaxRequests: 0,
      maxBodyBytes: 64 << 20,
      authToken: null,
      ...settings,
    },
    { log: silent },
  );
  await router.ready;
  return { ...router, [Symbol.asyncDispose]: () => router.close({ drainMs: 0 }) };
}

/** One series of a worker's or router's /metrics; 0 when it is not there yet. */
export async function metric(server: { readonly url: string }, series: string): Promise<number> {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  const line = text.split("\n").find((entry) => entry.startsWith(`${series} `));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
}
