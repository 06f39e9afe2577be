import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { parseBody, parseRequest } from "../openai/index.ts";
import { ProbeOffers, ProbePath, type ProbeSetting, ProbeSource, readProbe } from "../transceiver/path_probe.ts";
import { probePlace } from "../transceiver/probe_place.ts";
import { guard } from "./kv_routes.ts";

/** Whoever asked for a source and went away holds its memory no longer than this. */
const SOURCE_MS_MAX = 60_000;
const READ_MS_MAX = 45_000;

const Open = z.looseObject({ path: ProbePath });
const Read = z.looseObject({ path: ProbePath, offers: ProbeOffers });

export interface PathProbesOptions {
  /** As the worker's own transceiver was opened; null: it has none. */
  readonly setting: ProbeSetting | null;
  /** KVT_AUTH_TOKEN; null: loopback callers only. */
  readonly authToken: string | null;
}

/**
 * What `kvt doctor --peer` asks of a worker: to be read, or to read another, through a transceiver that exists for the probe alone. One source
 * and one read at a time, as each takes 32 MiB and what the machine can move.
 */
export class PathProbes {
  readonly #options: PathProbesOptions;
  #source: Promise<ProbeSource> | null = null;
  #sourceEnd: NodeJS.Timeout | undefined;
  #reading: { readonly abort: AbortController; readonly ended: Promise<unknown> } | null = null;
  #closed = false;

  constructor(options: PathProbesOptions) {
    this.#options = options;
  }

  addRoutes(front: FastifyInstance): void {
    const { authToken } = this.#options;
    front.post("/kv/probe", async (request) => {
      guard(request, authToken);
      const { path } = parseRequest(Open, parseBody(bytesOf(request)));
      return { place: probePlace(this.#setting(null)), offers: (await this.#open(this.#setting(path))).offers };
    });
    front.delete("/kv/probe", async (request) => {
      guard(request, authToken);
      await this.#closeSource();
      return {};
    });
    front.post("/kv/probe/read", async (request) => {
      guard(request, authToken);
      const { path, offers } = parseRequest(Read, parseBody(bytesOf(request)));
      const setting = this.#setting(path);
      return { place: probePlace(setting), ...(await this.#read(setting, offers)) };
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#reading?.abort.abort(new KvError("CLOSED", { what: "this worker" }));
    await this.#reading?.ended.catch(() => {});
    await this.#closeSource();
  }

  /** null: as the worker itself chooses. */
  #setting(path: ProbePath): ProbeSetting {
    const { setting } = this.#options;
    if (setting === null) throw new KvError("TRANSCEIVER_DISABLED", {});
    if (this.#closed) throw new KvError("DRAINING", { what: "this worker" });
    return path === null ? setting : { ...setting, path };
  }

  async #open(setting: ProbeSetting): Promise<ProbeSource> {
    if (this.#source !== null) throw new KvError("PROBE_RUNS", {});
    const source = ProbeSource.open(setting);
    this.#source = source;
    try {
      const opened = await source;
      this.#sourceEnd = setTimeout(() => void this.#closeSource(), SOURCE_MS_MAX).unref();
      return opened;
    } catch (error) {
      this.#source = null;
      throw error;
    }
  }

  async #closeSource(): Promise<void> {
    const source = this.#source;
    this.#source = null;
    clearTimeout(this.#sourceEnd);
    await source?.then(
      (opened) => opened.close(),
      () => {},
    );
  }

  async #read(setting: ProbeSetting, offers: ProbeOffers) {
    if (this.#reading !== null) throw new KvError("PROBE_RUNS", {});
    const abort = new AbortController();
    const limit = AbortSignal.timeout(READ_MS_MAX);
    const ended = readProbe(setting, offers, AbortSignal.any([abort.signal, limit]));
    this.#reading = { abort, ended };
    try {
      return await ended;
    } finally {
      this.#reading = null;
    }
  }
}

const bytesOf = (request: FastifyRequest): Uint8Array =>
  request.body instanceof Uint8Array ? request.body : new Uint8Array();
