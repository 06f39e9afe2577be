import { setMaxListeners } from "node:events";
import { Pool } from "undici";
import { z } from "zod";
import type { Clock } from "../clock.ts";
import type { WorkerAddress } from "../config/settings.ts";
import type { Hop } from "../openai/index.ts";
import { CircuitBreaker } from "./circuit_breaker.ts";

/** What the router reads of GET /server_info; everything is optional, since workers of other makes answer almost nothing. */
export const ServerInfo = z.looseObject({
  /** Ours only: version of the contract between router and worker. */
  kvt_protocol: z.int().nullish(),
  engine: z.string().nullish(),
  epoch: z.string().nullish(),
  transports: z.array(z.string()).nullish(),
  /** How long a context worker of ours holds the KV of an answered request for somebody to fetch it, ms. */
  offer_ms: z.number().positive().nullish(),
  /** Ours only: what the first event of a stream holds (early_token.ts). */
  first_event: z.string().nullish(),
  /** Ours only: requests that it works for at a time. */
  max_batch_size: z.int().nullish(),
  /** Ours only: how this worker keeps KV, checked where pairs are judged (pairs.ts). */
  kv_layout: z.looseObject({}).nullish(),
  /** What a generation worker must know to fetch from this one before there is a reply (trtllm-protocol.md section 2.3). */
  disaggregated_params: z
    .looseObject({ ctx_info_endpoint: z.union([z.string(), z.array(z.string()).min(1)]).nullish() })
    .nullish(),
});
export type ServerInfo = z.infer<typeof ServerInfo>;

/** The contract that this router speaks (S2). */
export const KVT_PROTOCOL = 1;

/**
 * `starting`: not seen yet · `ready`: healthy and prepared (S138) · `down`: was ready, is not now · `refused`: answers, but can't be
 * used, for the reason given.
 */
export type WorkerState = "starting" | "ready" | "down" | "refused";

/** What a prepared worker said about itself. */
export interface Preparation {
  readonly info: ServerInfo;
  readonly models: readonly ServedModel[];
  /** Knows `disagg_request_id` (trtllm-protocol.md section 1.4, version rule). */
  readonly knowsDisaggRequestId: boolean;
  readonly clockOffsetS: number | undefined;
}

export const ServedModel = z.looseObject({ id: z.string() });
export type ServedModel = z.infer<typeof ServedModel>;

/** Below the 10 s of trtllm-serve: a connection that the worker closes while we write costs a try. */
const KEEP_ALIVE_MS = 4_000;
const KEEP_ALIVE_MS_MAX = 8_000;
const CONNECT_MS = 3_000;
/** As many as the router admits requests: a hop never waits for a connection. */
const CONNECTIONS_MAX = 4_096;
const CONTROL_CONNECTIONS_MAX = 8;

/** One worker of the router's list: its connections, its state, and what is known about it. */
export class UpstreamWorker {
  /** Place in the router's file, context servers first. */
  readonly position: number;
  /** As the file writes it: the name in messages and lists. */
  readonly url: string;
  readonly origin: string;
  readonly roles: ReadonlySet<Hop>;
  /** For the hops of requests. */
  readonly dispatcher: Pool;
  /** For probes and releases: they must get through when every request connection is taken. */
  readonly control: Pool;
  readonly breaker: CircuitBreaker;
  state: WorkerState = "starting";
  /** Why it is not ready; empty when it is. */
  reason = "no answer yet";
  preparation: Preparation | undefined;
  /** Time of the last good health probe on the router's clock. */
  lastSeenMs: number | undefined;
  /** Requests that are with this worker now. */
  inFlight = 0;
  #lost = busySignal();

  constructor(address: WorkerAddress, options: { position: number; roles: ReadonlySet<Hop>; clock: Clock }) {
    this.url = address.url;
    this.origin = address.origin;
    this.position = options.position;
    this.roles = options.roles;
    this.breaker = new CircuitBreaker(options.clock);
    const shared = {
      pipelining: 1,
      keepAliveTimeout: KEEP_ALIVE_MS,
      keepAliveMaxTimeout: KEEP_ALIVE_MS_MAX,
      connect: { timeout: CONNECT_MS },
    };
    this.dispatcher = new Pool(address.origin, { ...shared, connections: CONNECTIONS_MAX });
    this.control = new Pool(address.origin, { ...shared, connections: CONTROL_CONNECTIONS_MAX });
  }

  /** Fires when the worker stops answering: what still waits for its first byte goes elsewhere. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** One of ours: knows /kv/release and /kv/abort, and its context answers are final when one token was asked for. */
  get isKvt(): boolean {
    return typeof this.preparation?.info.kvt_protocol === "number";
  }

  get canTakeRequests(): boolean {
    return this.state === "ready" && this.breaker.allows;
  }

  becameReady(preparation: Preparation): void {
    this.preparation = preparation;
    this.state = "ready";
    this.reason = "";
    if (this.#lost.signal.aborted) this.#lost = busySignal();
  }

  /** @param gone it does not answer at all: requests that wait for it are ended */
  becameUnready(state: Exclude<WorkerState, "ready">, reason: string, gone: boolean): void {
    this.state = state;
    this.reason = reason;
    this.preparation = undefined;
    if (gone) this.#lost.abort();
  }

  async close(): Promise<void> {
    await Promise.all([this.dispatcher.destroy(), this.control.destroy()]);
  }
}

/** Every request in flight listens to it, which is no leak. */
function busySignal(): AbortController {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  return controller;
}
