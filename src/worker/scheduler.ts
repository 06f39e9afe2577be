import { KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import type { CancelOutcome } from "../transceiver/api.ts";
import { checkServable, endsAtFirstToken } from "./admission.ts";
import { Admitter } from "./admitter.ts";
import { BlockReservations } from "./block_reservations.ts";
import { type DeparturePhase, Departures } from "./departures.ts";
import type { Engine, Sample } from "./engine.ts";
import { asKvError, copyPart } from "./engine_calls.ts";
import { Handoffs } from "./handoffs.ts";
import type { CachedBlock } from "./prefix_cache.ts";
import { type Finish, type RequestSpec, WorkerRequest } from "./request.ts";
import type { SchedulerLimits, SchedulerLoad, SchedulerOptions } from "./scheduler_options.ts";
import { StepLoop } from "./step_loop.ts";

/**
 * Continuous batching. A request is admitted, in order of arrival, when the pool has blocks for all it may ever need
 * (docs/decisions/011-reserve-at-admission.md), so whatever runs can finish. Here is how requests begin and end; whose turn it is, the
 * engine's steps and the transfers have a file each. Blocks are given back once no engine call and no transfer touches them.
 */
export class Scheduler {
  readonly #engine: Engine;
  readonly #limits: SchedulerLimits;
  readonly #options: SchedulerOptions;
  readonly #blocks: BlockReservations;
  readonly #departures: Departures;
  readonly #live = new Set<WorkerRequest>();
  readonly #admitter: Admitter;
  readonly #steps: StepLoop;
  readonly #handoffs: Handoffs;
  #draining = false;
  #broken: KvError | null = null;
  #idleWaiters: (() => void)[] = [];
  readonly #stopListening: () => void;

  constructor(options: SchedulerOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#limits = options.limits;
    const { tokensPerBlock } = options.engine.geometry;
    this.#blocks = new BlockReservations({
      pool: options.pool,
      tokensPerBlock,
      reuse: options.reusePrefixes,
      reuseParts: options.reuseParts,
      listener: options.cacheListener,
    });
    this.#departures = new Departures(options.nowMs, (phase, ms) => options.onFreed?.(phase, ms));
    this.#handoffs = new Handoffs(
      { ...options, blocks: this.#blocks },
      {
        pulled: (request) => this.#queue(request),
        received: (request, first) => this.#received(request, first),
        stop: (request, error) => this.#stop(request, error),
        fail: (request, error) => this.#fail(request, error),
        forget: (request) => this.#forget(request),
      },
    );
    this.#steps = new StepLoop(
      { ...options, blocks: this.#blocks, stepTokens: options.limits.stepTokens },
      {
        admit: () => this.#admitter.admit(),
        prompted: (request, first) => this.#afterPrompt(request, first),
        sampled: (request, sample) => this.#accept(request, sample),
        failed: (request, error) => this.#fail(request, error),
        broken: (error) => this.#breakDown(error),
        rested: () => this.#noteIdle(),
      },
    );
    this.#admitter = new Admitter(
      {
        limits: options.limits,
        blocks: this.#blocks,
        live: this.#live,
        busy: () => this.#handoffs.receiving + this.#steps.prefilling + this.#steps.decoding,
        expecting: () => this.#handoffs.expecting,
      },
      {
        begin: (request) => this.#begin(request),
        expired: (request, error) => this.#stop(request, error),
        giveWay: (request, error) => {
          this.#stop(request, error);
          this.#handoffs.abandon(request);
        },
      },
    );
    this.#stopListening = options.pool.onFreed(() => {
      if (this.#admitter.waiting > 0) this.#steps.wake();
    });
  }

  get load(): SchedulerLoad {
    return {
      waiting: this.#admitter.waiting + this.#handoffs.expecting,
      receiving: this.#handoffs.receiving,
      prefilling: this.#steps.prefilling,
      decoding: this.#steps.decoding,
      offered: [...this.#live].filter(({ state }) => state === "DISAGG_CONTEXT_TRANS_IN_PROGRESS").length,
      cachedBlocks: this.#blocks.cachedBlocks,
      evictableBlocks: this.#blocks.evictableBlocks,
    };
  }

  /** What the prefix cache holds, each block after the one that it extends. */
  get cached(): readonly CachedBlock[] {
    return this.#blocks.cached;
  }

  /** Reasons why this worker can't serve, none when it can. */
  get problems(): readonly string[] {
    const problems: string[] = [];
    if (this.#broken !== null) problems.push(this.#broken.message);
    const { stepLimitMs } = this.#limits;
    if (this.#steps.stepMs > stepLimitMs) problems.push(`an engine step has run for more than ${stepLimitMs} ms`);
    return problems;
  }

  /**
   * Queues a request. Its `done` settles once: with the outcome, or with a KvError.
   * @throws KvError DRAINING, INVALID_REQUEST, OFFERS_FULL, PROMPT_TOO_LONG, QUEUE_FULL, TRANSCEIVER_DISABLED
   */
  submit(spec: RequestSpec): WorkerRequest {
    this.#check(spec);
    const request = new WorkerRequest(spec, {
      tokensPerBlock: this.#blocks.tokensPerBlock,
      nowMs: this.#options.nowMs(),
      onChange: (change) => this.#options.onChange?.(change),
    });
    this.#live.add(request);
    if (endsAtFirstToken(spec)) {
      this.#finishWithoutKv(request);
      return request;
    }
    const { role } = spec;
    if (role.kind !== "context" || !role.generationFirst) this.#queue(request);
    else if (!this.#startEarly(request)) this.#handoffs.expectPull(request, role.contextId);
    return request;
  }

  #startEarly(request: WorkerRequest): boolean {
    if (!this.#admitter.startEarly(request)) return false;
    this.#steps.wake();
    return true;
  }

  #queue(request: WorkerRequest): void {
    this.#admitter.push(request);
    this.#steps.wake();
  }

  /**
   * Ends a request that nobody wants any more. `cancelled`: its blocks are free; `in_flight`: an engine call or a transfer still touches
   * them, they are free when it lets go.
   */
  abort(request: WorkerRequest, reason: string): CancelOutcome {
    if (!this.#live.has(request)) return "already_complete";
    if (request.abortedWith !== null) return "in_flight";
    const leftMs = this.#options.nowMs();
    const error = new KvError("CANCELLED", { transfer: request.spec.id, why: reason });
    if (request.offer !== null) {
      const outcome = this.#handoffs.cancelOffer(request, error);
      this.#departures.left(request, outcome === "in_flight" ? "granted" : "offered", leftMs);
      return outcome;
    }
    this.#departures.left(request, this.#phaseOf(request), leftMs);
    this.#stop(request, error);
    this.#handoffs.abandon(request);
    return this.#live.has(request) ? "in_flight" : "cancelled";
  }

  #phaseOf(request: WorkerRequest): DeparturePhase {
    if (request.state === "DISAGG_GENERATION_TRANS_IN_PROGRESS") return "receiving";
    return this.#steps.phaseOf(request) ?? "queued";
  }

  /** Ends the offer that a state of this worker names (POST /kv/release). @throws KvError BAD_STATE, TRANSCEIVER_DISABLED */
  releaseOffer(state: string, contextId: RequestId): CancelOutcome {
    const leftMs = this.#options.nowMs();
    const outcome = this.#handoffs.release(state);
    const request = [...this.#live].find(
      ({ spec: { role } }) => role.kind === "context" && role.contextId === contextId,
    );
    if (request !== undefined) {
      if (outcome === "in_flight") this.#departures.left(request, "granted", leftMs);
      else if (outcome === "cancelled") this.#departures.left(request, "offered", leftMs);
    }
    return outcome;
  }

  /** Aborts the requests of one `x-request-id` (POST /kv/abort); answers what became of each. */
  abortById(id: string, reason: string): CancelOutcome[] {
    const found = [...this.#live].filter(({ spec }) => spec.id === id);
    return found.map((request) => this.abort(request, reason));
  }

  /** Refuses new requests from now on; resolves when none is left that computes, waits or receives. Offers may still be open. */
  async drain(): Promise<void> {
    this.#draining = true;
    if (this.#isIdle()) return;
    await new Promise<void>((resolve) => this.#idleWaiters.push(resolve));
  }

  /** Ends what is left with CLOSED and gives back every block. */
  async close(): Promise<void> {
    this.#draining = true;
    const what = "this worker";
    for (const request of [...this.#live]) {
      if (request.abortedWith !== null) continue;
      const error = new KvError("CLOSED", { what });
      if (request.offer !== null) this.#handoffs.cancelOffer(request, error);
      else this.#stop(request, error);
    }
    await this.drain();
    this.#stopListening();
    this.#admitter.close();
    this.#blocks.forgetPrefixes();
  }

  #check(spec: RequestSpec): void {
    if (this.#draining) throw new KvError("DRAINING", { what: "this worker" });
    if (this.#broken !== null) throw this.#broken;
    if (spec.role.kind !== "aggregated" && !this.#handoffs.possible) throw new KvError("TRANSCEIVER_DISABLED", {});
    checkServable(spec, this.#limits, this.#blocks.capacity);
    if (spec.role.kind === "context") this.#checkOffers();
    this.#admitter.checkRoom();
  }

  /** Before any prefill is spent: whatever is admitted can be offered. */
  #checkOffers(): void {
    const { maxOffers } = this.#limits;
    const open = [...this.#live].filter(({ spec }) => spec.role.kind === "context").length;
    if (open >= maxOffers) throw new KvError("OFFERS_FULL", { open, limit: maxOffers });
  }

  /** It has its blocks. */
  #begin(request: WorkerRequest): void {
    const { role } = request.spec;
    request.admittedMs = this.#options.nowMs();
    this.#copyPart(request);
    if (role.kind === "generation") this.#handoffs.receive(request, role);
    else if (role.kind !== "context" || !role.generationFirst || this.#handoffs.stream(request, role.contextId)) {
      this.#steps.addPrompt(request);
    }
  }

  /** Engine calls run in the order given: what is computed for the request from now on finds the copy done. */
  #copyPart(request: WorkerRequest): void {
    const { part } = request;
    if (part === null) return;
    request.copying = copyPart(this.#engine, request, part);
    request.copying.catch((error: unknown) => {
      if (request.abortedWith === null) this.#stop(request, asKvError(error, "engine.copyTokens"));
    });
  }

  /** Token 0 of a prompt computed here. */
  #afterPrompt(request: WorkerRequest, sample: Sample): void {
    const { role } = request.spec;
    if (role.kind !== "context") {
      request.change("decode");
      this.#steps.addRow(request);
      this.#accept(request, sample);
      return;
    }
    const finish = this.#tell(request, sample);
    if (finish === undefined) return;
    if (finish !== null && request.streaming === null) {
      this.#complete(request, finish);
      return;
    }
    if (!this.#handoffs.offer(request, role.contextId, sample)) return;
    request.resolve({ reason: "length", stop: null }, this.#options.nowMs());
    this.#noteIdle();
  }

  #accept(request: WorkerRequest, sample: Sample): void {
    const finish = this.#tell(request, sample);
    if (finish !== undefined && finish !== null) this.#complete(request, finish);
  }

  /** undefined: the listener failed, and so has the request. */
  #tell(request: WorkerRequest, sample: Sample): Finish | null | undefined {
    try {
      return request.accept(sample, this.#options.nowMs());
    } catch (error) {
      this.#fail(request, asKvError(error, "token listener"));
      return undefined;
    }
  }

  #received(request: WorkerRequest, first: Sample): void {
    const finish = this.#tell(request, first);
    if (finish === undefined) return;
    if (finish !== null) {
      this.#complete(request, finish);
      return;
    }
    request.change("decode");
    this.#steps.addRow(request);
    this.#steps.wake();
  }

  /** The answer is the first token alone: nothing is fetched, and the context side may let go. */
  #finishWithoutKv(request: WorkerRequest): void {
    const { role } = request.spec;
    if (role.kind !== "generation" || role.firstToken === undefined) return;
    try {
      this.#handoffs.decline(request);
    } catch (error) {
      this.#fail(request, asKvError(error, "kv.decline"));
      return;
    }
    const finish = this.#tell(request, role.firstToken);
    if (finish !== undefined) this.#complete(request, finish ?? { reason: "length", stop: null });
  }

  /** Ends a request that has not answered yet, with `error`, wherever it stands. */
  #stop(request: WorkerRequest, error: KvError): void {
    request.abortedWith = error;
    request.expecting?.abort();
    this.#admitter.remove(request);
    request.streaming?.cancel(error.message);
    if (request.receiving !== null && request.state === "DISAGG_GENERATION_TRANS_IN_PROGRESS") {
      this.#handoffs.cancelReceive(request, error);
      this.#noteIdle();
      return;
    }
    if (request.inStep) {
      request.change("abortInStep");
      this.#steps.abortCall(request);
      return;
    }
    this.#fail(request, error);
  }

  #complete(request: WorkerRequest, finish: Finish): void {
    // The last token was never evaluated.
    if (request.blocks !== null) this.#blocks.remember(request, request.tokens.length - 1, true);
    this.#blocks.release(request);
    request.change("finish");
    request.resolve(finish, this.#options.nowMs());
    this.#forget(request);
  }

  #fail(request: WorkerRequest, error: KvError): void {
    this.#handoffs.refuse(request);
    this.#blocks.release(request);
    request.change("fail");
    request.reject(error);
    this.#forget(request);
  }

  #forget(request: WorkerRequest): void {
    this.#live.delete(request);
    this.#departures.freed(request);
    this.#handoffs.forget(request);
    this.#steps.remove(request);
    if (this.#admitter.waiting > 0) this.#steps.wake();
    this.#noteIdle();
  }

  #isIdle(): boolean {
    const waiting = this.#admitter.waiting + this.#handoffs.expecting + this.#handoffs.receiving;
    const busy = waiting + this.#steps.prefilling + this.#steps.decoding;
    return busy === 0 && !this.#steps.isLooping;
  }

  #noteIdle(): void {
    if (this.#idleWaiters.length === 0 || !this.#isIdle()) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** A defect of the scheduler itself: everything ends, and health says so. */
  #breakDown(error: unknown): void {
    this.#broken = asKvError(error, "scheduler");
    for (const request of [...this.#live]) {
      if (request.state === "DISAGG_CONTEXT_TRANS_IN_PROGRESS") continue;
      request.expecting?.abort();
      request.streaming?.cancel(this.#broken.message);
      this.#admitter.remove(request);
      request.reject(this.#broken);
      this.#forget(request);
    }
  }
}
