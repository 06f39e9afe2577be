import { KvError } from "../errors.ts";
import type { BlockReservations } from "./block_reservations.ts";
import { planPrefill } from "./chunk_plan.ts";
import type { Engine, LayerListener, Sample } from "./engine.ts";
import { computeChunk, DecodeCall, leaveStep } from "./engine_calls.ts";
import type { WorkerRequest } from "./request.ts";
import type { SchedulerOptions } from "./scheduler_options.ts";

/** What the steps tell the scheduler. Any of these may add and remove requests. */
export interface StepListener {
  /** Before each step: who has found room since joins it. */
  admit(): void;
  /** Token 0 of a prompt that was computed here; it is in the loop no more. */
  prompted(request: WorkerRequest, first: Sample): void;
  /** The next token of a decoding request. */
  sampled(request: WorkerRequest, sample: Sample): void;
  /** It was aborted or its call failed, and no engine call touches its blocks any more. */
  failed(request: WorkerRequest, error: KvError): void;
  /** A defect of this worker itself: no step will run again. */
  broken(error: unknown): void;
  /** Nothing is left to compute. */
  rested(): void;
}

export interface StepOptions extends Pick<SchedulerOptions, "nowMs" | "onStep" | "layerwise"> {
  readonly engine: Engine;
  readonly blocks: BlockReservations;
  /** Tokens computed in one step. */
  readonly stepTokens: number;
}

/** The engine's work: each step computes one token of every decoding request and chunks of the prompts, at most `stepTokens` together. */
export class StepLoop {
  readonly #options: StepOptions;
  readonly #listener: StepListener;
  #prefilling: WorkerRequest[] = [];
  readonly #decoding = new Set<WorkerRequest>();
  #decodeCall: DecodeCall | null = null;
  #isLooping = false;
  #again = false;
  #startedMs: number | null = null;

  constructor(options: StepOptions, listener: StepListener) {
    this.#options = options;
    this.#listener = listener;
  }

  get prefilling(): number {
    return this.#prefilling.length;
  }

  get decoding(): number {
    return this.#decoding.size;
  }

  /** Also in the moment between two steps, and while `admit` runs. */
  get isLooping(): boolean {
    return this.#isLooping;
  }

  /** So long has the step that runs now been running; 0 when there is none. */
  get stepMs(): number {
    return this.#startedMs === null ? 0 : this.#options.nowMs() - this.#startedMs;
  }

  phaseOf(request: WorkerRequest): "decode" | "prefill" | null {
    if (this.#decoding.has(request)) return "decode";
    return this.#prefilling.includes(request) ? "prefill" : null;
  }

  /** It holds its blocks, and its prompt is to be computed. Takes effect with the next `wake`. */
  addPrompt(request: WorkerRequest): void {
    this.#prefilling.push(request);
  }

  /** Its prompt's KV is here: its next token is to be computed. Takes effect with the next `wake`. */
  addRow(request: WorkerRequest): void {
    this.#decoding.add(request);
  }

  /** Nothing more is computed for it; a call that runs goes on. */
  remove(request: WorkerRequest): void {
    this.#decoding.delete(request);
    this.#prefilling = this.#prefilling.filter((other) => other !== request);
  }

  /** Ends the engine call that works for this request alone, or for nobody else who still wants it. `failed` follows. */
  abortCall(request: WorkerRequest): void {
    request.step?.abort();
    this.#decodeCall?.abortIfUnwanted();
  }

  /** Something changed that a step may take up. */
  wake(): void {
    this.#again = true;
    if (this.#isLooping) return;
    this.#isLooping = true;
    // Not at once: `submit` and pool listeners run in the middle of somebody else's work.
    queueMicrotask(() => void this.#loop());
  }

  async #loop(): Promise<void> {
    try {
      while (this.#again || this.#prefilling.length > 0 || this.#decoding.size > 0) {
        this.#again = false;
        this.#listener.admit();
        await this.#step();
      }
    } catch (error) {
      this.#listener.broken(error);
    } finally {
      this.#isLooping = false;
      this.#listener.rested();
    }
  }

  async #step(): Promise<void> {
    const { stepTokens, blocks, nowMs, onStep } = this.#options;
    const rows = [...this.#decoding];
    const chunks = planPrefill(this.#prefilling, {
      budget: stepTokens,
      rows: rows.length,
      minimum: blocks.tokensPerBlock,
    });
    if (chunks.length === 0 && this.#prefilling.length > 0) {
      // Or the loop would turn without end.
      throw new KvError("INTERNAL", { where: "scheduler", why: `no chunk for ${this.#prefilling.length} prompts` });
    }
    if (rows.length === 0 && chunks.length === 0) return;
    const startedMs = nowMs();
    this.#startedMs = startedMs;
    // Decode first: the engine works in the order given, and a token that is waited for is shorter than a chunk.
    const calls = chunks.map(
      ({ request, tokens }) =>
        () =>
          this.#prefill(request, tokens),
    );
    if (rows.length > 0) calls.unshift(() => this.#decode(rows));
    await Promise.all(calls.map((call) => call()));
    this.#startedMs = null;
    const prefillTokens = chunks.reduce((sum, { tokens }) => sum + tokens, 0);
    onStep?.({ rows: rows.length, prefillTokens, ms: nowMs() - startedMs });
    // Who was served a part goes to the end, so that no long prompt holds back what came after it.
    const served = new Set(chunks.map(({ request }) => request));
    this.#prefilling = [
      ...this.#prefilling.filter((request) => !served.has(request)),
      ...this.#prefilling.filter((request) => served.has(request)),
    ];
  }

  async #prefill(request: WorkerRequest, count: number): Promise<void> {
    const { engine, blocks, nowMs } = this.#options;
    const sample = await computeChunk(engine, request, count, this.#layerListener(request, count));
    leaveStep(request);
    if (request.abortedWith !== null) {
      this.#listener.failed(request, request.abortedWith);
      return;
    }
    request.computedTokens += count;
    blocks.remember(request, request.computedTokens);
    if (sample === undefined) {
      request.streaming?.ready(request.computedTokens);
      return;
    }
    this.#prefilling = this.#prefilling.filter((other) => other !== request);
    request.prefilledMs = nowMs();
    this.#listener.prompted(request, sample);
  }

  /** The last layer's KV is there well before its attention and token 0 are: what of the chunk is left to move then moves meanwhile. */
  #layerListener({ streaming, computedTokens }: WorkerRequest, count: number): LayerListener | undefined {
    if (streaming === null) return undefined;
    const { engine, layerwise } = this.#options;
    const from = layerwise ? 1 : engine.geometry.layers;
    return { from, written: (layers) => streaming.ready(computedTokens + count, { layers }) };
  }

  async #decode(rows: readonly WorkerRequest[]): Promise<void> {
    const call = new DecodeCall(rows);
    this.#decodeCall = call;
    const samples = await call.run(this.#options.engine);
    this.#decodeCall = null;
    for (const request of rows) leaveStep(request);
    for (const [index, request] of rows.entries()) {
      const sample = samples[index];
      if (request.abortedWith !== null) this.#listener.failed(request, request.abortedWith);
      else if (sample !== undefined) this.#listener.sampled(request, sample);
    }
  }
}
