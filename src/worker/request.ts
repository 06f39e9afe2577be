import type { KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { PeerAddress, ReceiveTransfer, SendTransfer, TransferReport } from "../transceiver/api.ts";
import type { RequestSampling, Sample, Sampling } from "./engine.ts";
import type { PartOfBlock } from "./prefix_cache.ts";
import { type PrefixKey, prefixKeys } from "./prefix_keys.ts";
import { nextRequestState, type RequestEvent, type RequestState, type StateChange } from "./request_state.ts";

/** Why an answer ended: a stop token, `maxTokens`, or the text (a stop string). */
export interface Finish {
  readonly reason: "stop" | "length";
  /** The stop string or the stop token id that ended it; null for the model's own end token and for `length`. */
  readonly stop: string | number | null;
}

/** How a request is served (trtllm-protocol.md section 1.4, `request_type`). */
export type RequestRole =
  | { readonly kind: "aggregated" }
  /**
   * Prefill, token 0, then offer the KV under this id. Generation-first: wait until a generation worker asks for it, offer it from the first
   * chunk on, and send token 0 with the last.
   */
  | { readonly kind: "context"; readonly contextId: RequestId; readonly generationFirst?: true }
  /** Fetch the KV that `state` names and go on after token 0. */
  | {
      readonly kind: "generation";
      /** Empty only when the first token ends the answer, so that nothing is fetched. */
      readonly state: string;
      /** `ctx_request_id`, when the caller gave it: must be the one in `state`. */
      readonly contextId: RequestId | null;
      readonly firstToken: Sample;
      readonly peer?: undefined;
    }
  /** Generation-first: ask this peer for the KV that it will offer under this id; it comes with token 0. */
  | {
      readonly kind: "generation";
      readonly peer: PeerAddress;
      readonly contextId: RequestId;
      readonly firstToken?: undefined;
    };

export interface RequestSpec {
  /** `x-request-id`. */
  readonly id: string;
  readonly role: RequestRole;
  readonly prompt: Uint32Array;
  /** Output tokens at most, token 0 included; >= 1. */
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly sampling: RequestSampling;
  /** End the answer; may not be sampled before `minTokens`. Value: what `Finish.stop` says. */
  readonly stopTokens: ReadonlyMap<number, number | null>;
  readonly onToken: TokenListener;
  /** A probe of the engine: its KV is not kept for later requests. */
  readonly isProbe?: true;
}

/**
 * Called once for each output token, in order, synchronously. `finish` is what the token itself decides.
 * @returns a finish when the text ends here
 */
export type TokenListener = (sample: Sample, index: number, finish: Finish | null) => Finish | null;

/** Tokens whose KV a request will hold at most; the last output token is never evaluated. */
export const tokensReserved = ({ role, prompt, maxTokens }: RequestSpec): number =>
  role.kind === "context" ? prompt.length : prompt.length + maxTokens - 1;

/** Milliseconds between points of a request's life, for the time line of `kvt demo` and the metrics. */
export interface RequestTimings {
  readonly queueMs: number;
  readonly prefillMs: number;
  readonly transferMs: number;
  readonly decodeMs: number;
}

/** Moments of a request's life, ms on the scheduler's clock. A request that was not scheduled was answered at its arrival. */
export interface RequestStamps {
  readonly arrivalMs: number;
  readonly firstScheduledMs: number;
  /** 0 unless KV was received. */
  readonly receivedMs: number;
  readonly firstTokenMs: number;
  readonly lastTokenMs: number;
}

export interface RequestOutcome {
  readonly finish: Finish;
  readonly outputTokens: number;
  /** Prompt tokens whose KV was in this worker's prefix cache. */
  readonly cachedTokens: number;
  readonly firstToken: Sample | null;
  /** Context requests only, unless token 0 ended the answer. */
  readonly offer: SendTransfer | null;
  readonly transfer: TransferReport | null;
  readonly timings: RequestTimings;
  readonly stamps: RequestStamps;
  /** Tokens that blocks were reserved for; 0 when it needed none. */
  readonly reservedTokens: number;
}

function firstStateOf(role: RequestRole): RequestState {
  if (role.kind === "generation") return "DISAGG_GENERATION_INIT";
  return role.kind === "context" && role.generationFirst ? "DISAGG_CONTEXT_WAIT_SCHEDULER" : "CONTEXT_INIT";
}

/** One request inside the scheduler. Its holder may only abort it; everything else is the scheduler's. */
export class WorkerRequest {
  readonly spec: RequestSpec;
  readonly done: Promise<RequestOutcome>;
  readonly arrivedMs: number;
  /** Tokens sampled so far, after the prompt in `#tokens`. */
  outputTokens = 0;
  /** Prompt tokens whose KV is here: reused, received or computed. */
  computedTokens = 0;
  cachedTokens = 0;
  blocks: BlockHold | null = null;
  /** A block of the cache that begins as the first one after the reused blocks does; `computedTokens` counts it already. */
  part: PartOfBlock | null = null;
  /** Settles when `part` is copied; null: there is none. */
  copying: Promise<void> | null = null;
  receiving: ReceiveTransfer | null = null;
  /** The offer of a prompt that is still computed; `offer` once the request is answered. */
  streaming: SendTransfer | null = null;
  offer: SendTransfer | null = null;
  report: TransferReport | null = null;
  firstToken: Sample | null = null;
  /** Ends the wait for a generation worker. */
  expecting: AbortController | null = null;
  /** Ends the engine call that works for this request alone. */
  step: AbortController | null = null;
  /** An engine call touches `blocks`. */
  inStep = false;
  abortedWith: KvError | null = null;
  /** Generation-first: took blocks before anybody had asked for its KV. */
  startedEarly = false;
  admittedMs = 0;
  prefilledMs = 0;
  receivedMs = 0;
  firstTokenMs = 0;
  lastTokenMs = 0;
  readonly #tokens: Uint32Array;
  readonly #keepsHistory: boolean;
  readonly #tokensPerBlock: number;
  readonly #onChange: (change: StateChange) => void;
  #keys: PrefixKey[] | null = null;
  #state: RequestState;
  #resolve: (outcome: RequestOutcome) => void = () => {};
  #reject: (error: KvError) => void = () => {};

  constructor(
    spec: RequestSpec,
    options: {
      readonly tokensPerBlock: number;
      readonly nowMs: number;
      readonly onChange: (change: StateChange) => void;
    },
  ) {
    this.spec = spec;
    this.arrivedMs = options.nowMs;
    this.#tokensPerBlock = options.tokensPerBlock;
    this.#onChange = options.onChange;
    this.#state = firstStateOf(spec.role);
    this.#tokens = new Uint32Array(spec.prompt.length + spec.maxTokens);
    this.#tokens.set(spec.prompt);
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = spec.sampling;
    this.#keepsHistory = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // A caller that has gone does not ask any more.
    this.done.catch(() => {});
  }

  get state(): RequestState {
    return this.#state;
  }

  get promptTokens(): number {
    return this.spec.prompt.length;
  }

  /** Prompt and output. */
  get tokens(): Uint32Array {
    return this.#tokens.subarray(0, this.promptTokens + this.outputTokens);
  }

  get tokensReserved(): number {
    return tokensReserved(this.spec);
  }

  /** Keys of the prompt's full blocks. */
  get promptKeys(): readonly PrefixKey[] {
    this.#keys ??= prefixKeys(this.spec.prompt, this.#tokensPerBlock);
    return this.#keys;
  }

  change(event: RequestEvent): void {
    const change = nextRequestState(this.spec.id, this.#state, event);
    this.#state = change.to;
    this.#onChange(change);
  }

  /** Adds an output token, tells the listener, and answers whether the answer ends with it. */
  accept(sample: Sample, nowMs: number): Finish | null {
    this.firstTokenMs ||= nowMs;
    this.lastTokenMs = nowMs;
    const index = this.outputTokens;
    this.#tokens[this.promptTokens + index] = sample.token;
    this.outputTokens++;
    this.firstToken ??= sample;
    const own = this.#finishOf(sample.token);
    return this.spec.onToken(sample, index, own) ?? own;
  }

  #finishOf(token: number): Finish | null {
    const stop = this.outputTokens > this.spec.minTokens ? this.spec.stopTokens.get(token) : undefined;
    if (stop !== undefined) return { reason: "stop", stop };
    return this.outputTokens >= this.spec.maxTokens ? { reason: "length", stop: null } : null;
  }

  /** Sampling of the next output token. */
  sampling(): Sampling {
    const index = this.outputTokens;
    return {
      ...this.spec.sampling,
      index,
      history: this.#keepsHistory ? this.tokens : NO_TOKENS,
      promptTokens: this.#keepsHistory ? this.promptTokens : 0,
      banned: index < this.spec.minTokens ? Uint32Array.from(this.spec.stopTokens.keys()) : NO_TOKENS,
    };
  }

  resolve(finish: Finish, nowMs: number): void {
    const { admittedMs, arrivedMs, prefilledMs, receivedMs } = this;
    const startMs = prefilledMs || receivedMs || admittedMs || nowMs;
    this.#resolve({
      finish,
      outputTokens: this.outputTokens,
      cachedTokens: this.cachedTokens,
      firstToken: this.firstToken,
      offer: this.offer,
      transfer: this.report,
      timings: {
        queueMs: (admittedMs || nowMs) - arrivedMs,
        prefillMs: prefilledMs === 0 ? 0 : prefilledMs - admittedMs,
        transferMs: receivedMs === 0 ? 0 : receivedMs - admittedMs,
        decodeMs: nowMs - startMs,
      },
      stamps: {
        arrivalMs: arrivedMs,
        firstScheduledMs: admittedMs || arrivedMs,
        receivedMs,
        firstTokenMs: this.firstTokenMs || nowMs,
        lastTokenMs: this.lastTokenMs || nowMs,
      },
      reservedTokens: admittedMs === 0 ? 0 : this.tokensReserved,
    });
  }

  reject(error: KvError): void {
    this.#reject(error);
  }
}

const NO_TOKENS = new Uint32Array(0);
