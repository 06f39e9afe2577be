import { isKvError, KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import { BlockHold, type BlockPool } from "../kv/pool.ts";
import type { ReceiveTransfer, Transceiver, TransferReport } from "../transceiver/api.ts";
import { planPrefill } from "./chunk_plan.ts";
import type { Engine, Sample } from "./engine.ts";
import { PrefixCache, prefixKeys } from "./prefix_cache.ts";
import { type Finish, type RequestSpec, WorkerRequest } from "./request.ts";
import { isTerminal, type StateChange } from "./request_state.ts";

/** What the scheduler needs of a transceiver. */
export type TransferPort = Pick<Transceiver, "send" | "receive" | "release">;

export interface SchedulerLimits {
  /** Requests that hold blocks at the same time. */
  readonly maxBatchSize: number;
  /** Tokens computed in one step: bounds how long a token of another request, and an abort, wait for a prompt. */
  readonly stepTokens: number;
  /** Longest prompt that is computed here (`max_num_tokens` unless prefill is chunked). */
  readonly maxPromptTokens: number;
  readonly maxQueueSize: number;
  /** A request that waited this long for blocks is given up (ADMISSION_TIMEOUT). */
  readonly queueTimeoutMs: number;
  /** The same for generation requests: their KV is not offered for longer. */
  readonly offerMs: number;
  /** Prompt and output. */
  readonly maxSeqLen: number;
  /** An engine step longer than this makes the worker unhealthy. */
  readonly stepLimitMs: number;
}

export interface SchedulerOptions {
  readonly engine: Engine;
  readonly pool: BlockPool;
  /** null: no transceiver, aggregated requests only. */
  readonly transfers: TransferPort | null;
  readonly limits: SchedulerLimits;
  readonly reusePrefixes: boolean;
  readonly nowMs: () => number;
  /** Each edge of each request, once. */
  readonly onChange?: (change: StateChange) => void;
  /** A transfer of this side is complete. */
  readonly onTransfer?: (request: WorkerRequest, direction: "send" | "receive", report: TransferReport) => void;
  readonly onStep?: (step: { readonly rows: number; readonly prefillTokens: number; readonly ms: number }) => void;
  /** Test hook: may spoil received blocks before anything reads them; nothing is reused then. */
  readonly onReceived?: (blocks: BlockHold) => void;
}

export interface SchedulerLoad {
  readonly waiting: number;
  readonly receiving: number;
  readonly prefilling: number;
  readonly decoding: number;
  /** Prefilled and answered, blocks wait for a generation worker. */
  readonly offered: number;
  readonly cachedBlocks: number;
  readonly evictableBlocks: number;
}

/**
 * Continuous batching. A request is admitted, in order of arrival, when the pool has blocks for all it may ever need
 * (docs/decisions/011-reserve-at-admission.md), so whatever runs can finish. Each step computes one token of every decoding request and
 * chunks of the prompts, at most `stepTokens` together. Blocks are given back once no engine call and no transfer touches them.
 */
export class Scheduler {
  readonly #engine: Engine;
  readonly #pool: BlockPool;
  readonly #transfers: TransferPort | null;
  readonly #limits: SchedulerLimits;
  readonly #options: SchedulerOptions;
  readonly #cache: PrefixCache;
  readonly #tokensPerBlock: number;
  readonly #live = new Set<WorkerRequest>();
  readonly #queueTimers = new Map<WorkerRequest, NodeJS.Timeout>();
  #waiting: WorkerRequest[] = [];
  readonly #receiving = new Set<WorkerRequest>();
  #prefilling: WorkerRequest[] = [];
  readonly #decoding = new Set<WorkerRequest>();
  #looping = false;
  #again = false;
  #stepStartedMs: number | null = null;
  #draining = false;
  #broken: KvError | null = null;
  #idleWaiters: (() => void)[] = [];
  readonly #stopListening: () => void;

  constructor(options: SchedulerOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#pool = options.pool;
    this.#transfers = options.transfers;
    this.#limits = options.limits;
    this.#cache = new PrefixCache(options.pool);
    this.#tokensPerBlock = options.engine.geometry.tokensPerBlock;
    this.#stopListening = options.pool.onFreed(() => {
      if (this.#waiting.length > 0) this.#wake();
    });
  }

  get load(): SchedulerLoad {
    return {
      waiting: this.#waiting.length,
      receiving: this.#receiving.size,
      prefilling: this.#prefilling.length,
      decoding: this.#decoding.size,
      offered: [...this.#live].filter(({ state }) => state === "DISAGG_CONTEXT_TRANS_IN_PROGRESS").length,
      cachedBlocks: this.#cache.size,
      evictableBlocks: this.#cache.evictable(),
    };
  }

  /** Reasons why this worker can't serve, none when it can. */
  get problems(): readonly string[] {
    const problems: string[] = [];
    if (this.#broken !== null) problems.push(this.#broken.message);
    const { stepLimitMs } = this.#limits;
    if (this.#stepStartedMs !== null && this.#options.nowMs() - this.#stepStartedMs > stepLimitMs) {
      problems.push(`an engine step has run for more than ${stepLimitMs} ms`);
    }
    return problems;
  }

  /**
   * Queues a request. Its `done` settles once: with the outcome, or with a KvError.
   * @throws KvError DRAINING, INVALID_REQUEST, PROMPT_TOO_LONG, QUEUE_FULL, TRANSCEIVER_DISABLED
   */
  submit(spec: RequestSpec): WorkerRequest {
    this.#check(spec);
    const request = new WorkerRequest(spec, {
      tokensPerBlock: this.#tokensPerBlock,
      nowMs: this.#options.nowMs(),
      onChange: (change) => this.#options.onChange?.(change),
    });
    this.#live.add(request);
    if (endsAtFirstToken(spec)) {
      this.#finishWithoutKv(request);
      return request;
    }
    this.#waiting.push(request);
    this.#queueTimers.set(
      request,
      setTimeout(() => this.#expire(request), this.#queueLimitMs(spec)),
    );
    this.#wake();
    return request;
  }

  /** Ends a request; blocks that no engine call or transfer touches are free when this returns. No-op once it has ended. */
  abort(request: WorkerRequest, reason: string): void {
    this.#end(request, new KvError("CANCELLED", { transfer: request.spec.id, why: reason }), reason);
  }

  #end(request: WorkerRequest, error: KvError, reason: string): void {
    if (!this.#live.has(request) || request.abortedWith !== null) return;
    if (request.state === "DISAGG_CONTEXT_TRANS_IN_PROGRESS") {
      request.abortedWith = error;
      request.offer?.cancel(reason);
      return;
    }
    this.#stop(request, error);
  }

  /** Aborts the requests of one `x-request-id` (POST /kv/abort); answers how many there were. */
  abortById(id: string, reason: string): number {
    const found = [...this.#live].filter(({ spec }) => spec.id === id);
    for (const request of found) this.abort(request, reason);
    return found.length;
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
    for (const request of [...this.#live]) this.#end(request, new KvError("CLOSED", { what }), "the worker is closing");
    await this.drain();
    this.#stopListening();
    this.#cache.clear();
  }

  #check(spec: RequestSpec): void {
    const { maxPromptTokens, maxSeqLen, maxQueueSize } = this.#limits;
    if (this.#draining) throw new KvError("DRAINING", { what: "this worker" });
    if (this.#broken !== null) throw this.#broken;
    if (spec.role.kind !== "aggregated" && this.#transfers === null) throw new KvError("TRANSCEIVER_DISABLED", {});
    const tokens = spec.prompt.length;
    if (tokens === 0) throw new KvError("INVALID_REQUEST", { param: "prompt", why: "it holds no token" });
    if (tokens >= maxSeqLen) {
      throw new KvError("PROMPT_TOO_LONG", { tokens, limit: maxSeqLen - 1, by: "max_seq_len less one output token" });
    }
    if (tokens > maxPromptTokens && spec.role.kind !== "generation") {
      throw new KvError("PROMPT_TOO_LONG", { tokens, limit: maxPromptTokens, by: BY_MAX_NUM_TOKENS });
    }
    if (tokens + spec.maxTokens > maxSeqLen) {
      throw new KvError("INVALID_REQUEST", {
        param: "max_tokens",
        why: `${tokens} prompt tokens and ${spec.maxTokens} output tokens are more than max_seq_len (${maxSeqLen})`,
      });
    }
    if (spec.role.kind === "generation" && spec.role.state === "" && !endsAtFirstToken(spec)) {
      throw new KvError("INVALID_REQUEST", {
        param: "disaggregated_params.encoded_opaque_state",
        why: "it is missing, and the first token does not end the answer",
      });
    }
    const reserved = spec.role.kind === "context" ? tokens : tokens + spec.maxTokens - 1;
    if (this.#blocksFor(reserved) > this.#pool.total) {
      const limit = this.#pool.total * this.#tokensPerBlock;
      throw new KvError("PROMPT_TOO_LONG", { tokens: reserved, limit, by: "blocks of the KV pool, output included" });
    }
    if (this.#waiting.length >= maxQueueSize) {
      throw new KvError("QUEUE_FULL", { waiting: this.#waiting.length, limit: maxQueueSize });
    }
  }

  #blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.#tokensPerBlock);
  }

  #wake(): void {
    this.#again = true;
    if (this.#looping) return;
    this.#looping = true;
    // Not at once: `submit` and pool listeners run in the middle of somebody else's work.
    queueMicrotask(() => void this.#loop());
  }

  async #loop(): Promise<void> {
    try {
      while (this.#again || this.#prefilling.length > 0 || this.#decoding.size > 0) {
        this.#again = false;
        this.#admit();
        await this.#step();
      }
    } catch (error) {
      this.#breakDown(error);
    } finally {
      this.#looping = false;
      this.#noteIdle();
    }
  }

  #admit(): void {
    for (let head = this.#waiting[0]; head !== undefined; head = this.#waiting[0]) {
      const active = this.#receiving.size + this.#prefilling.length + this.#decoding.size;
      if (active >= this.#limits.maxBatchSize || !this.#reserve(head)) return;
      this.#leaveQueue(head);
      head.admittedMs = this.#options.nowMs();
      if (head.spec.role.kind === "generation") this.#receive(head, head.spec.role);
      else this.#prefilling.push(head);
    }
  }

  /** Takes all blocks the request may need, reused ones first; false when they are not free, then nothing was taken. */
  #reserve(request: WorkerRequest): boolean {
    // One token at least is computed here or fetched: logits come from computing, and a peer's offer ends by a pull.
    const reusable = Math.floor((request.promptTokens - 1) / this.#tokensPerBlock);
    const reused = this.#options.reusePrefixes ? this.#cache.match(request.promptKeys.slice(0, reusable)) : [];
    const missing = this.#blocksFor(request.tokensReserved) - reused.length;
    const lacking = missing - this.#pool.free;
    if (lacking > 0 && this.#cache.evictable() >= lacking) this.#cache.evict(lacking);
    if (missing > this.#pool.free) {
      for (const hold of reused) hold.release();
      return false;
    }
    request.blocks = BlockHold.join(this.#pool, [...reused, this.#pool.allocate(missing)]);
    request.cachedTokens = reused.length * this.#tokensPerBlock;
    request.computedTokens = request.cachedTokens;
    return true;
  }

  async #step(): Promise<void> {
    const rows = [...this.#decoding];
    const chunks = planPrefill(this.#prefilling, {
      budget: this.#limits.stepTokens,
      rows: rows.length,
      minimum: this.#tokensPerBlock,
    });
    if (chunks.length === 0 && this.#prefilling.length > 0) {
      // Or the loop would turn without end.
      throw new KvError("INTERNAL", { where: "scheduler", why: `no chunk for ${this.#prefilling.length} prompts` });
    }
    if (rows.length === 0 && chunks.length === 0) return;
    const startedMs = this.#options.nowMs();
    this.#stepStartedMs = startedMs;
    // Decode first: the engine works in the order given, and a token that is waited for is shorter than a chunk.
    const calls = chunks.map(
      ({ request, tokens }) =>
        () =>
          this.#prefill(request, tokens),
    );
    if (rows.length > 0) calls.unshift(() => this.#decode(rows));
    await Promise.all(calls.map((call) => call()));
    this.#stepStartedMs = null;
    const prefillTokens = chunks.reduce((sum, { tokens }) => sum + tokens, 0);
    this.#options.onStep?.({ rows: rows.length, prefillTokens, ms: this.#options.nowMs() - startedMs });
    // Who was served a part goes to the end, so that no long prompt holds back what came after it.
    const served = new Set(chunks.map(({ request }) => request));
    this.#prefilling = [
      ...this.#prefilling.filter((request) => !served.has(request)),
      ...this.#prefilling.filter((request) => served.has(request)),
    ];
  }

  async #prefill(request: WorkerRequest, count: number): Promise<void> {
    const start = request.computedTokens;
    const isLast = start + count === request.promptTokens;
    const blocks = mustHold(request);
    const controller = new AbortController();
    request.step = controller;
    request.inStep = true;
    let sample: Sample | undefined;
    try {
      sample = await this.#engine.prefill({
        tokens: request.spec.prompt.subarray(start, start + count),
        startPos: start,
        blockTable: blocks.ids,
        ...(isLast ? { sampling: request.sampling() } : {}),
        signal: controller.signal,
      });
    } catch (error) {
      request.abortedWith ??= asKvError(error, "engine.prefill");
    }
    request.inStep = false;
    request.step = null;
    if (request.abortedWith !== null) {
      this.#fail(request, request.abortedWith);
      return;
    }
    request.computedTokens += count;
    this.#remember(request, request.computedTokens);
    if (!isLast) return;
    this.#prefilling = this.#prefilling.filter((other) => other !== request);
    request.prefilledMs = this.#options.nowMs();
    if (sample === undefined) {
      this.#fail(request, new KvError("INTERNAL", { where: "engine.prefill", why: "it gave no sample" }));
      return;
    }
    this.#afterPrompt(request, sample);
  }

  async #decode(rows: readonly WorkerRequest[]): Promise<void> {
    const controller = new AbortController();
    for (const request of rows) {
      request.inStep = true;
      request.step = null;
    }
    this.#decodeStep = { rows, controller };
    let samples: readonly Sample[] = [];
    let failure: KvError | null = null;
    try {
      samples = await this.#engine.decode(
        rows.map((request) => ({
          token: lastToken(request),
          pos: request.tokens.length - 1,
          blockTable: mustHold(request).ids,
          sampling: request.sampling(),
        })),
        controller.signal,
      );
    } catch (error) {
      failure = asKvError(error, "engine.decode");
    }
    this.#decodeStep = null;
    for (const request of rows) request.inStep = false;
    for (const [index, request] of rows.entries()) {
      const sample = samples[index];
      if (request.abortedWith !== null) this.#fail(request, request.abortedWith);
      else if (failure !== null) this.#fail(request, failure);
      else if (sample === undefined) {
        this.#fail(request, new KvError("INTERNAL", { where: "engine.decode", why: `no sample for row ${index}` }));
      } else this.#accept(request, sample);
    }
  }

  /** The decode call that runs, so that it can end early once nobody wants it. */
  #decodeStep: { readonly rows: readonly WorkerRequest[]; readonly controller: AbortController } | null = null;

  /** Token 0 of a prompt computed here. */
  #afterPrompt(request: WorkerRequest, sample: Sample): void {
    const { role } = request.spec;
    if (role.kind !== "context") {
      request.change("decode");
      this.#decoding.add(request);
      this.#accept(request, sample);
      return;
    }
    const finish = this.#tell(request, sample);
    if (finish === undefined) return;
    if (finish !== null) {
      this.#complete(request, finish);
      return;
    }
    try {
      request.offer = this.#port().send({
        requestId: role.contextId,
        tokens: request.promptTokens,
        blocks: mustHold(request),
      });
    } catch (error) {
      this.#fail(request, asKvError(error, "kv.send"));
      return;
    }
    this.#releaseBlocks(request);
    request.change("offer");
    request.offer.done.then(
      (report) => {
        request.report = report;
        request.change("delivered");
        this.#forget(request);
        this.#options.onTransfer?.(request, "send", report);
      },
      () => {
        request.change("fail");
        this.#forget(request);
      },
    );
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
      return request.accept(sample);
    } catch (error) {
      this.#fail(request, asKvError(error, "token listener"));
      return undefined;
    }
  }

  #receive(request: WorkerRequest, { state, contextId }: { state: string; contextId: RequestId | null }): void {
    this.#receiving.add(request);
    const table = mustHold(request).share(0, this.#blocksFor(request.promptTokens));
    try {
      const transfer = this.#port().receive({ state, blocks: table, skipTokens: request.computedTokens });
      request.receiving = transfer;
      request.change("receive");
      transfer.done.then(
        (report) => {
          request.report = report;
          this.#received(request);
          this.#options.onTransfer?.(request, "receive", report);
        },
        (error: unknown) => this.#receiveFailed(request, asKvError(error, "kv.receive")),
      );
      const why = mismatch(transfer, request, contextId);
      if (why !== null) this.#stop(request, new KvError("BAD_STATE", { why }));
    } catch (error) {
      this.#fail(request, asKvError(error, "kv.receive"));
    } finally {
      table.release();
    }
  }

  #received(request: WorkerRequest): void {
    this.#receiving.delete(request);
    if (request.abortedWith !== null) {
      this.#settleQuarantine(request);
      return;
    }
    const { role } = request.spec;
    request.receivedMs = this.#options.nowMs();
    request.computedTokens = request.promptTokens;
    request.change("received");
    this.#options.onReceived?.(mustHold(request));
    this.#remember(request, request.promptTokens);
    if (role.kind !== "generation") return;
    const finish = this.#tell(request, role.firstToken);
    if (finish === undefined) return;
    if (finish !== null) {
      this.#complete(request, finish);
      return;
    }
    request.change("decode");
    this.#decoding.add(request);
    this.#wake();
  }

  #receiveFailed(request: WorkerRequest, error: KvError): void {
    this.#receiving.delete(request);
    if (request.abortedWith === null) this.#fail(request, error);
    else this.#settleQuarantine(request);
  }

  #settleQuarantine(request: WorkerRequest): void {
    if (!isTerminal(request.state)) request.change("fail");
    this.#forget(request);
  }

  /** The answer is the first token alone: nothing is fetched, and the context side may let go. */
  #finishWithoutKv(request: WorkerRequest): void {
    const { role } = request.spec;
    if (role.kind !== "generation") return;
    try {
      if (role.state !== "") this.#port().release(role.state);
    } catch (error) {
      this.#fail(request, asKvError(error, "kv.release"));
      return;
    }
    const finish = this.#tell(request, role.firstToken);
    if (finish !== undefined) this.#complete(request, finish ?? { reason: "length", stop: null });
  }

  /** Ends a request that has not answered yet, with `error`, wherever it stands. */
  #stop(request: WorkerRequest, error: KvError): void {
    request.abortedWith = error;
    this.#leaveQueue(request);
    if (request.receiving !== null && request.state === "DISAGG_GENERATION_TRANS_IN_PROGRESS") {
      // The session holds the blocks it may still write; ours end now and the caller hears at once.
      const outcome = request.receiving.cancel(error.message);
      this.#releaseBlocks(request);
      request.change(outcome === "in_flight" ? "quarantine" : "fail");
      request.reject(error);
      this.#noteIdle();
      return;
    }
    if (request.inStep) {
      request.change("abortInStep");
      request.step?.abort();
      const step = this.#decodeStep;
      if (step?.rows.every(({ abortedWith }) => abortedWith !== null) === true) step.controller.abort();
      return;
    }
    this.#fail(request, error);
  }

  #queueLimitMs({ role }: RequestSpec): number {
    const { queueTimeoutMs, offerMs } = this.#limits;
    return role.kind === "generation" ? Math.min(queueTimeoutMs, offerMs) : queueTimeoutMs;
  }

  #expire(request: WorkerRequest): void {
    const ms = this.#queueLimitMs(request.spec);
    this.#stop(request, new KvError("ADMISSION_TIMEOUT", { request: request.spec.id, ms }));
  }

  #complete(request: WorkerRequest, finish: Finish): void {
    // The last token was never evaluated.
    if (request.blocks !== null) this.#remember(request, request.tokens.length - 1);
    this.#releaseBlocks(request);
    request.change("finish");
    request.resolve(finish, this.#options.nowMs());
    this.#forget(request);
  }

  #fail(request: WorkerRequest, error: KvError): void {
    this.#releaseBlocks(request);
    request.change("fail");
    request.reject(error);
    this.#forget(request);
  }

  #releaseBlocks(request: WorkerRequest): void {
    request.blocks?.release();
    request.blocks = null;
  }

  /** Puts the full blocks of the first `tokens` tokens into the prefix cache. */
  #remember(request: WorkerRequest, tokens: number): void {
    if (!this.#options.reusePrefixes || this.#options.onReceived !== undefined) return;
    const full = Math.floor(tokens / this.#tokensPerBlock);
    const prompt = request.promptKeys;
    const keys =
      full <= prompt.length
        ? prompt.slice(0, full)
        : prefixKeys(request.tokens.subarray(0, tokens), this.#tokensPerBlock, prompt);
    this.#cache.insert(keys, mustHold(request));
  }

  #leaveQueue(request: WorkerRequest): void {
    clearTimeout(this.#queueTimers.get(request));
    this.#queueTimers.delete(request);
    this.#waiting = this.#waiting.filter((other) => other !== request);
  }

  #forget(request: WorkerRequest): void {
    this.#live.delete(request);
    this.#receiving.delete(request);
    this.#decoding.delete(request);
    this.#prefilling = this.#prefilling.filter((other) => other !== request);
    if (this.#waiting.length > 0) this.#wake();
    this.#noteIdle();
  }

  #isIdle(): boolean {
    const busy = this.#waiting.length + this.#receiving.size + this.#prefilling.length + this.#decoding.size;
    return busy === 0 && !this.#looping;
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
      this.#leaveQueue(request);
      request.reject(this.#broken);
      this.#forget(request);
    }
  }

  #port(): TransferPort {
    if (this.#transfers === null) throw new KvError("TRANSCEIVER_DISABLED", {});
    return this.#transfers;
  }
}

/** What sets the limit of a prompt, for the message. */
export const BY_MAX_NUM_TOKENS = "max_num_tokens; enable_chunked_prefill lifts it";

function endsAtFirstToken({ role, maxTokens, minTokens, stopTokens }: RequestSpec): boolean {
  if (role.kind !== "generation") return false;
  return maxTokens === 1 || (minTokens < 1 && stopTokens.has(role.firstToken.token));
}

function mustHold(request: WorkerRequest): BlockHold {
  if (request.blocks === null) {
    throw new KvError("INTERNAL", { where: "scheduler", why: `request ${request.spec.id} holds no blocks` });
  }
  return request.blocks;
}

function mismatch(transfer: ReceiveTransfer, request: WorkerRequest, contextId: RequestId | null): string | null {
  if (transfer.tokens !== request.promptTokens) {
    return `it offers ${transfer.tokens} tokens, the prompt has ${request.promptTokens}`;
  }
  return contextId === null || contextId === transfer.requestId
    ? null
    : `it belongs to request ${transfer.requestId}, ctx_request_id names ${contextId}`;
}

const lastToken = (request: WorkerRequest): number => request.tokens.at(-1) ?? 0;

function asKvError(error: unknown, where: string): KvError {
  if (isKvError(error)) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new KvError("INTERNAL", { where, why }, { cause: error });
}
