import { request } from "undici";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { Layout } from "../layout.ts";
import { ProbedPath, ProbeOffers, type ProbePath } from "../transceiver/path_probe.ts";
import { ProbePlace } from "../transceiver/probe_place.ts";

const ASK_LIMIT_MS = 10_000;
/** A transport without work of the other side's may crawl; the worker itself gives up before. */
const READ_LIMIT_MS = 60_000;
const ANSWER_LIMIT = 4 << 20;

const KvLayout = z.looseObject({
  tpSize: z.int().min(1),
  ppSize: z.int().min(1),
  pipeline: z.array(z.int()).nullish(),
});
const ServerInfo = z.looseObject({
  version: z.string(),
  instance: z.string(),
  role: z.string().nullish(),
  model: z.string(),
  transports: z.array(z.string()),
  degraded: z.string().nullish(),
  kv_layout: KvLayout.nullable(),
});

/** What a worker says of itself at GET /server_info, as far as a hand-off with it depends on it. */
export interface WorkerFacts {
  readonly url: string;
  readonly version: string;
  readonly instance: string;
  readonly role: string | null;
  readonly model: string;
  readonly transports: readonly string[];
  readonly degraded: string | null;
  readonly layout: Layout;
  readonly tpSize: number;
  readonly ppSize: number;
  readonly pipeline: readonly number[] | undefined;
}

const Opened = z.object({ place: ProbePlace, offers: ProbeOffers });
const Read = ProbedPath.extend({ place: ProbePlace });

/** One worker, over HTTP, with the token of the cluster. */
export class WorkerClient {
  readonly url: string;
  readonly #token: string | undefined;

  /** @param address `HOST:PORT` or `http://HOST:PORT` */
  constructor(address: string, token: string | undefined) {
    this.url = address.includes("://") ? address.replace(/\/+$/, "") : `http://${address}`;
    this.#token = token;
  }

  /** @throws KvError SERVER_ANSWER: it can't be asked, or is no worker of ours with a transceiver */
  async facts(): Promise<WorkerFacts> {
    const info = this.#parse(ServerInfo, await this.#ask("GET", "/server_info", undefined, ASK_LIMIT_MS));
    if (info.kv_layout === null) {
      throw this.#failed("a server_info without kv_layout: it has no transceiver (cache_transceiver_config.backend)");
    }
    const { tpSize, ppSize, pipeline, dpRank: _, ...shape } = info.kv_layout;
    const { version, instance, role = null, model, transports, degraded = null } = info;
    const layout = this.#parse(Layout, shape);
    const parts = { tpSize, ppSize, pipeline: pipeline ?? undefined };
    return { url: this.url, version, instance, role, model, transports, degraded, layout, ...parts };
  }

  async openProbe(path: ProbePath): Promise<z.infer<typeof Opened>> {
    return this.#parse(Opened, await this.#ask("POST", "/kv/probe", { path }, READ_LIMIT_MS));
  }

  async closeProbe(): Promise<void> {
    await this.#ask("DELETE", "/kv/probe", undefined, ASK_LIMIT_MS);
  }

  async readProbe(path: ProbePath, offers: ProbeOffers): Promise<z.infer<typeof Read>> {
    return this.#parse(Read, await this.#ask("POST", "/kv/probe/read", { path, offers }, READ_LIMIT_MS));
  }

  #failed(why: string): KvError {
    return new KvError("SERVER_ANSWER", { server: this.url, why });
  }

  #parse<Shape extends z.ZodType>(shape: Shape, value: unknown): z.output<Shape> {
    const parsed = shape.safeParse(value);
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    throw this.#failed(`an answer that is no worker's of this package (${issue?.path.join(".")}: ${issue?.message})`);
  }

  async #ask(method: "GET" | "POST" | "DELETE", path: string, body: unknown, limitMs: number): Promise<unknown> {
    try {
      const reply = await request(`${this.url}${path}`, {
        method,
        headers: {
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(limitMs),
        headersTimeout: limitMs,
        bodyTimeout: limitMs,
      });
      const bytes = await limited(reply.body, ANSWER_LIMIT);
      const value: unknown = JSON.parse(bytes);
      if (reply.statusCode === 200) return value;
      throw this.#failed(`an error for ${method} ${path}: ${errorText(reply.statusCode, value)}`);
    } catch (error) {
      if (error instanceof KvError) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw this.#failed(`no answer to ${method} ${path} (${why})`);
    }
  }
}

async function limited(body: AsyncIterable<Uint8Array>, limit: number): Promise<string> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of body) {
    bytes += part.byteLength;
    if (bytes > limit) throw new Error(`an answer of more than ${limit} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString("utf8");
}

const Refusal = z.looseObject({ error: z.looseObject({ message: z.string() }) });

function errorText(status: number, value: unknown): string {
  const parsed = Refusal.safeParse(value);
  return parsed.success ? parsed.data.error.message : `status ${status}`;
}
