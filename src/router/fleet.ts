import type { Clock } from "../clock.ts";
import type { RouterSettings, ServerGroupSettings } from "../config/settings.ts";
import { KvError } from "../errors.ts";
import type { Logger } from "../observability/log.ts";
import type { Hop } from "../openai/index.ts";
import { type BadPair, Pairs, tellPairs } from "./pairs.ts";
import { createPolicy, type RoutingPolicy } from "./policy.ts";
import { Prober, type ProbeTimes } from "./prober.ts";
import { type ServedModel, UpstreamWorker } from "./upstream_worker.ts";

export interface FleetOptions {
  readonly context: ServerGroupSettings;
  readonly generation: ServerGroupSettings;
  readonly scheduleStyle: RouterSettings["scheduleStyle"];
  readonly clock: Clock;
  readonly log: Logger;
  readonly probe: ProbeTimes;
  /** Until then all listed workers must be ready. */
  readonly startTimeoutMs: number;
}

/** What a choice of a worker must respect. */
export interface Wish {
  readonly model: string | undefined;
  /** Already tried for this request: only taken again when there is no other. */
  readonly tried: ReadonlySet<UpstreamWorker>;
  /** The other side of the pair: a mixed worker is its own peer only when it is the only one (S3). */
  readonly partner?: UpstreamWorker;
  /** Workers of the other role to one of which KV must be able to move, or from it; asked for each choice. Left out: none is needed. */
  readonly peers?: () => readonly UpstreamWorker[];
}

/** A worker reserved for one hop. */
export interface Choice {
  readonly worker: UpstreamWorker;
  /** Ends the reservation; the second call does nothing. */
  finish(): void;
}

/** The workers of the router's file: who is there, who can take a request, and who gets it. */
export class Fleet {
  readonly workers: readonly UpstreamWorker[];
  readonly #policies: Readonly<Record<Hop, RoutingPolicy>>;
  readonly #groups: Readonly<Record<Hop, readonly UpstreamWorker[]>>;
  readonly #prober: Prober;
  readonly #pairs = new Pairs();
  readonly #log: Logger;
  #badPairs = "";
  readonly #startTimeoutMs: number;
  #started = false;
  #onAllReady: (() => void) | undefined;

  constructor(options: FleetOptions) {
    this.workers = listWorkers(options);
    this.#groups = {
      context: this.workers.filter((worker) => worker.roles.has("context")),
      generation: this.workers.filter((worker) => worker.roles.has("generation")),
    };
    this.#policies = {
      context: createPolicy(options.context.policy),
      generation: createPolicy(options.generation.policy),
    };
    this.#startTimeoutMs = options.startTimeoutMs;
    this.#log = options.log;
    const { clock, log, probe, scheduleStyle } = options;
    this.#prober = new Prober({
      clock,
      log,
      times: probe,
      mustNameEndpoint: (worker) =>
        scheduleStyle === "generation_first" && worker.roles.has("context") && this.#groups.generation.length > 0,
      onChange: () => this.#changed(),
    });
  }

  /**
   * Whether a request can only run on one worker: the file lists one role, or the one ready worker has both. A pair of a worker and
   * itself would move KV from its left hand into its right.
   */
  get isAggregated(): boolean {
    if (this.#groups.context.length === 0 || this.#groups.generation.length === 0) return true;
    const ready = this.workers.filter((worker) => worker.state === "ready");
    return ready.length === 1 && ready[0]?.roles.size === 2;
  }

  /** The start is over, and every listed role has a worker that is ready now. */
  get isReady(): boolean {
    return this.#started && this.#missingRoles().length === 0;
  }

  /** Why `isReady` is false. */
  get unreadyReason(): string {
    if (!this.#started) return `waiting for ${this.#unready().join(", ")}`;
    return `no ${this.#missingRoles().join(" and no ")} worker is ready`;
  }

  /**
   * Starts the probes and waits until all listed workers are ready at the same time (S137).
   * @throws KvError START_TIMEOUT naming the missing ones, or the reason of `signal`
   */
  async start(signal: AbortSignal): Promise<void> {
    this.#prober.start(this.workers);
    await new Promise<void>((resolve, reject) => {
      const end = (settle: () => void): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
        this.#onAllReady = undefined;
        settle();
      };
      const onAbort = (): void => end(() => reject(signal.reason));
      const timer = setTimeout(() => {
        const details = { seconds: this.#startTimeoutMs / 1000, missing: this.#unready().join(", ") };
        end(() => reject(new KvError("START_TIMEOUT", details)));
      }, this.#startTimeoutMs);
      signal.addEventListener("abort", onAbort, { once: true });
      this.#onAllReady = () => end(resolve);
      if (signal.aborted) onAbort();
    });
    this.#started = true;
  }

  group(role: Hop): readonly UpstreamWorker[] {
    return this.#groups[role];
  }

  suspect(worker: UpstreamWorker): void {
    this.#prober.suspect(worker);
  }

  /** Whether a request that failed at `wish.tried` would find another worker. */
  hasOther(role: Hop, wish: Wish): boolean {
    return this.#able(role, wish).some((worker) => !wish.tried.has(worker) && worker !== wish.partner);
  }

  /** Workers of a role that can take a request for the model now. */
  able(role: Hop, model: string | undefined): readonly UpstreamWorker[] {
    return this.#able(role, { model, tried: new Set() });
  }

  /** Pairs of workers, known now, between which KV can't move. */
  get badPairs(): readonly BadPair[] {
    return this.#pairs.bad(this.#groups.context, this.#groups.generation);
  }

  /** @throws KvError CLUSTER_NOT_READY when no worker of the role can take the request, NO_COMPATIBLE_PAIR when none of them fits a peer */
  choose(role: Hop, wish: Wish): Choice {
    const able = this.#able(role, wish);
    if (able.length === 0) this.#refuseMisfits(role, wish);
    const strangers = able.filter((worker) => worker !== wish.partner);
    const fresh = strangers.filter((worker) => !wish.tried.has(worker));
    const candidates = [fresh, strangers, able].find((list) => list.length > 0);
    if (candidates === undefined) {
      throw new KvError("CLUSTER_NOT_READY", { why: `no ${role} worker can take the request now` });
    }
    const policy = this.#policies[role];
    const worker = policy.choose(candidates);
    worker.inFlight += 1;
    worker.breaker.started();
    let finished = false;
    return {
      worker,
      finish: () => {
        if (finished) return;
        finished = true;
        worker.inFlight -= 1;
        worker.breaker.ended();
        policy.finish(worker);
      },
    };
  }

  /** Models of all ready workers, each name once. */
  get models(): readonly ServedModel[] {
    const byId = new Map<string, ServedModel>();
    for (const worker of this.workers) {
      for (const model of worker.preparation?.models ?? []) if (!byId.has(model.id)) byId.set(model.id, model);
    }
    return [...byId.values()];
  }

  /** Whether each role serves at most one name: then it does not matter which one a request gives (S123). */
  get servesOneModel(): boolean {
    return namesOf(this.#groups.context).size <= 1 && namesOf(this.#groups.generation).size <= 1;
  }

  async close(): Promise<void> {
    await this.#prober.stop();
    await Promise.all(this.workers.map((worker) => worker.close()));
  }

  #able(role: Hop, wish: Wish): UpstreamWorker[] {
    const group = this.#groups[role];
    const { model } = wish;
    // Behind one served name the workers' own names may differ (S169), so names only count where a role has several.
    const byName = model !== undefined && namesOf(group).size > 1;
    const able = group.filter((worker) => worker.canTakeRequests && (!byName || serves(worker, model)));
    const peers = wish.peers?.() ?? [];
    // Without a peer there is nothing to fit: that will be told when it is looked for.
    if (peers.length === 0) return able;
    return able.filter((worker) => peers.some((peer) => this.#differences(role, worker, peer) === ""));
  }

  #differences(role: Hop, worker: UpstreamWorker, peer: UpstreamWorker): string {
    return role === "context" ? this.#pairs.differences(worker, peer) : this.#pairs.differences(peer, worker);
  }

  #refuseMisfits(role: Hop, wish: Wish): void {
    const { peers, ...rest } = wish;
    const misfits = this.#able(role, rest);
    if (misfits.length === 0 || peers === undefined) return;
    const pairs = role === "context" ? this.#pairs.bad(misfits, peers()) : this.#pairs.bad(peers(), misfits);
    throw new KvError("NO_COMPATIBLE_PAIR", { role, pairs: tellPairs(pairs) });
  }

  #missingRoles(): Hop[] {
    const roles: readonly Hop[] = ["context", "generation"];
    return roles.filter((role) => {
      const group = this.#groups[role];
      return group.length > 0 && !group.some((worker) => worker.state === "ready");
    });
  }

  #unready(): string[] {
    return this.workers
      .filter((worker) => worker.state !== "ready")
      .map((worker) => `${[...worker.roles].join("+")} ${worker.url} (${worker.reason})`);
  }

  #changed(): void {
    const pairs = tellPairs(this.badPairs);
    if (pairs !== this.#badPairs && pairs !== "") this.#log.warn({ pairs }, "workers that KV can't move between");
    this.#badPairs = pairs;
    if (this.workers.every((worker) => worker.state === "ready")) this.#onAllReady?.();
  }
}

function listWorkers(options: FleetOptions): UpstreamWorker[] {
  const roles = new Map<string, Set<Hop>>();
  const addresses = new Map<string, (typeof options.context.servers)[number]>();
  for (const role of ["context", "generation"] as const) {
    for (const address of options[role].servers) {
      addresses.set(address.origin, addresses.get(address.origin) ?? address);
      roles.set(address.origin, (roles.get(address.origin) ?? new Set()).add(role));
    }
  }
  return [...addresses.values()].map(
    (address, position) =>
      new UpstreamWorker(address, {
        position,
        roles: roles.get(address.origin) ?? new Set(),
        clock: options.clock,
      }),
  );
}

const serves = (worker: UpstreamWorker, model: string | undefined): boolean => {
  const models = worker.preparation?.models ?? [];
  return models.length === 0 || models.some(({ id }) => id === model);
};

function namesOf(group: readonly UpstreamWorker[]): Set<string> {
  return new Set(group.flatMap((worker) => worker.preparation?.models.map(({ id }) => id) ?? []));
}
