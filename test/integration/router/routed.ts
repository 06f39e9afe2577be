import { afterEach } from "vitest";
import type { RouterSettings } from "../../../src/config/settings.ts";
import { createLogger } from "../../../src/observability/log.ts";
import { type RouterHooks, type RouterServer, startRouter } from "../../../src/router/server.ts";
import { ScriptedWorker } from "./scripted_worker.ts";

export interface LogLine {
  readonly level: string;
  readonly msg: string;
  readonly [field: string]: unknown;
}

export interface Routed extends AsyncDisposable {
  readonly router: RouterServer;
  readonly context: ScriptedWorker[];
  readonly generation: ScriptedWorker[];
  readonly log: LogLine[];
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
  complete(fields?: object, init?: RequestInit): Promise<Response>;
}

export interface RoutedOptions {
  readonly context?: number | readonly ScriptedWorker[];
  readonly generation?: number | readonly ScriptedWorker[];
  readonly settings?: Partial<RouterSettings>;
  readonly hooks?: RouterHooks;
  /** Runs before the router starts. */
  readonly prepare?: (workers: { context: ScriptedWorker[]; generation: ScriptedWorker[] }) => void;
  /** Wait until all workers are in use; default true. */
  readonly waitReady?: boolean;
}

/** A router in front of scripted workers, all on real sockets. */
export async function route(options: RoutedOptions = {}): Promise<Routed> {
  const start = (wish: number | readonly ScriptedWorker[]): Promise<ScriptedWorker[]> =>
    typeof wish === "number"
      ? Promise.all(Array.from({ length: wish }, () => new ScriptedWorker().listen()))
      : Promise.resolve([...wish]);
  const context = await start(options.context ?? 1);
  const generation = await start(options.generation ?? 1);
  options.prepare?.({ context, generation });
  const group = (workers: ScriptedWorker[]) =>
    ({ servers: workers.map((worker) => worker.address), policy: "round_robin" }) as const;
  const log: LogLine[] = [];
  const router = await startRouter(
    {
      host: "127.0.0.1",
      port: 0,
      logLevel: "debug",
      model: null,
      strictModel: false,
      context: group(context),
      generation: group(generation),
      scheduleStyle: "context_first",
      maxRetries: 1,
      nodeId: 1,
      allowRequestChatTemplate: false,
      serverStartTimeoutMs: 10_000,
      requestTimeoutMs: 10_000,
      metricsLogIntervalMs: 0,
      perfMetricsMaxRequests: 0,
      maxBodyBytes: 64 << 20,
      authToken: null,
      ...options.settings,
    },
    {
      log: createLogger({
        name: "router",
        level: "debug",
        stream: { write: (line) => void log.push(JSON.parse(line)) },
      }),
      probe: { intervalMs: 50, timeoutMs: 500 },
      ...options.hooks,
    },
  );
  if (options.waitReady !== false) await router.ready;
  const post = (path: string, body: unknown, init: RequestInit = {}): Promise<Response> =>
    fetch(`${router.url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: typeof body === "string" ? body : JSON.stringify(body),
      ...init,
    });
  return {
    router,
    context,
    generation,
    log,
    post,
    complete: (fields = {}, init = {}) =>
      post("/v1/completions", { model: "tiny", prompt: "a b c", max_tokens: 2, ...fields }, init),
    [Symbol.asyncDispose]: async () => {
      await router.close({ drainMs: 0 });
      await Promise.all([...new Set([...context, ...generation])].map((worker) => worker.die()));
    },
  };
}

/** `error` of an answer's body. */
export async function errorOf(response: Response): Promise<Record<string, unknown>> {
  return ((await response.json()) as { error: Record<string, unknown> }).error;
}

/** For a test file: starts what a test asks for, its first workers by name too, and ends it after the test. */
export function routedPerTest(): (options?: RoutedOptions) => Promise<RoutedPair> {
  let routed: Routed | undefined;
  afterEach(async () => {
    await routed?.[Symbol.asyncDispose]();
    routed = undefined;
  });
  return async (options = {}) => {
    // A second one in the same test takes the place of the first.
    await routed?.[Symbol.asyncDispose]();
    routed = await route(options);
    return { ...routed, ctx: routed.context[0] as ScriptedWorker, gen: routed.generation[0] as ScriptedWorker };
  };
}

export interface RoutedPair extends Routed {
  readonly ctx: ScriptedWorker;
  readonly gen: ScriptedWorker;
}
