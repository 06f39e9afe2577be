import { KvError } from "../errors.ts";
import { type RequestSpec, tokensReserved, type WorkerRequest } from "./request.ts";

export interface AdmissionLimits {
  /** Longest prompt that is computed here (`max_num_tokens` unless prefill is chunked). */
  readonly maxPromptTokens: number;
  readonly maxQueueSize: number;
  /** A request that waited this long for blocks is given up (ADMISSION_TIMEOUT). */
  readonly queueTimeoutMs: number;
  /** The same for generation requests: their KV is not offered for longer. */
  readonly offerMs: number;
  /** Prompt and output. */
  readonly maxSeqLen: number;
}

/** What sets the limit of a prompt, for the message. */
export const BY_MAX_NUM_TOKENS = "max_num_tokens; enable_chunked_prefill lifts it";

/**
 * Refuses what can never be served here, whatever else runs.
 * @param capacity tokens that the whole pool holds
 * @throws KvError INVALID_REQUEST, PROMPT_TOO_LONG
 */
export function checkServable(spec: RequestSpec, limits: AdmissionLimits, capacity: number): void {
  const { maxPromptTokens, maxSeqLen } = limits;
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
  if (
    spec.role.kind === "generation" &&
    spec.role.peer === undefined &&
    spec.role.state === "" &&
    !endsAtFirstToken(spec)
  ) {
    throw new KvError("INVALID_REQUEST", {
      param: "disaggregated_params.encoded_opaque_state",
      why: "it is missing, and the first token does not end the answer",
    });
  }
  const reserved = tokensReserved(spec);
  if (reserved > capacity) {
    throw new KvError("PROMPT_TOO_LONG", {
      tokens: reserved,
      limit: capacity,
      by: "blocks of the KV pool, output included",
    });
  }
}

/** A generation request whose answer is the token that it brings: it needs no KV. */
export function endsAtFirstToken({ role, maxTokens, minTokens, stopTokens }: RequestSpec): boolean {
  if (role.kind !== "generation" || role.firstToken === undefined) return false;
  return maxTokens === 1 || (minTokens < 1 && stopTokens.has(role.firstToken.token));
}

/**
 * Holds blocks until another worker has found some for its half: an offer until it is fetched (also one that is still computed, when nobody
 * had asked for it), a receive that came before its prefill until that is computed.
 */
export function dependsOnPeer({ spec: { role }, startedEarly }: Pick<WorkerRequest, "spec" | "startedEarly">): boolean {
  if (role.kind === "context") return !role.generationFirst || startedEarly;
  return role.kind === "generation" && role.peer !== undefined;
}

/**
 * Whether a generation-first prefill may begin before a generation worker has asked for it: when blocks are plentiful. All that began so
 * hold at most a share of the pool, and leave room for the largest request there can be, so whoever has its reader finds blocks beside them.
 */
export function mayStartEarly(
  request: WorkerRequest,
  live: Iterable<WorkerRequest>,
  limits: PoolLimits & { readonly earlyShare: number; readonly maxSeqLen: number },
): boolean {
  const { blocks, blocksFor, earlyShare, maxSeqLen } = limits;
  let early = blocksFor(request.tokensReserved);
  for (const { startedEarly, tokensReserved: tokens } of live) if (startedEarly) early += blocksFor(tokens);
  return early <= earlyShare * blocks && early + blocksFor(maxSeqLen) <= blocks;
}

/**
 * Whether a request that depends on its peer may take blocks on a worker of both roles. If all blocks here wait for the other worker and
 * all blocks there for this one, nobody ever goes on. So such requests leave room for the largest one around, up to half of the pool,
 * and half of the batch.
 * @param others `live`: all requests of the worker; those that hold blocks have been admitted; `waiting`: those in the queue
 */
export function leavesRoom(
  request: WorkerRequest,
  { live, waiting }: { readonly live: Iterable<WorkerRequest>; readonly waiting: Iterable<WorkerRequest> },
  limits: PoolLimits & { readonly batch: number },
): boolean {
  const { blocks, batch, blocksFor } = limits;
  let held = 0;
  let receiving = 0;
  let largest = 0;
  for (const other of live) {
    const { spec, admittedMs, receivedMs, tokensReserved: tokens } = other;
    largest = Math.max(largest, blocksFor(spec.prompt.length + spec.maxTokens - 1));
    if (admittedMs === 0 || receivedMs > 0 || !dependsOnPeer(other)) continue;
    held += blocksFor(tokens);
    if (spec.role.kind === "generation") receiving++;
  }
  if (held === 0) return !wouldKeepOut(request, waiting, limits);
  const room = Math.min(largest, Math.floor(blocks / 2));
  return held + blocksFor(request.tokensReserved) + room <= blocks && receiving < Math.ceil(batch / 2);
}

interface PoolLimits {
  /** Of the whole pool. */
  readonly blocks: number;
  readonly blocksFor: (tokens: number) => number;
}

/** Whether somebody whose other half holds blocks elsewhere would find none behind `request`. */
function wouldKeepOut(
  request: WorkerRequest,
  waiting: Iterable<WorkerRequest>,
  { blocks, blocksFor }: PoolLimits,
): boolean {
  const taken = blocksFor(request.tokensReserved);
  for (const other of waiting) {
    const isHalf = other.spec.role.kind !== "aggregated" && !dependsOnPeer(other);
    if (isHalf && taken + blocksFor(other.tokensReserved) > blocks) return true;
  }
  return false;
}

/** Requests that wait for blocks, first in, first out, each for a limited time. */
export class AdmissionQueue {
  readonly #limits: AdmissionLimits;
  readonly #onExpired: (request: WorkerRequest, error: KvError) => void;
  #requests: WorkerRequest[] = [];
  readonly #timers = new Map<WorkerRequest, NodeJS.Timeout>();

  constructor(limits: AdmissionLimits, onExpired: (request: WorkerRequest, error: KvError) => void) {
    this.#limits = limits;
    this.#onExpired = onExpired;
  }

  get length(): number {
    return this.#requests.length;
  }

  /** In order of arrival, as they were when this was called. */
  [Symbol.iterator](): Iterator<WorkerRequest> {
    return [...this.#requests].values();
  }

  /** @throws KvError QUEUE_FULL */
  checkRoom(): void {
    const { maxQueueSize } = this.#limits;
    if (this.length >= maxQueueSize) throw new KvError("QUEUE_FULL", { waiting: this.length, limit: maxQueueSize });
  }

  push(request: WorkerRequest): void {
    const { queueTimeoutMs, offerMs } = this.#limits;
    const ms = request.spec.role.kind === "generation" ? Math.min(queueTimeoutMs, offerMs) : queueTimeoutMs;
    const expire = (): void =>
      this.#onExpired(request, new KvError("ADMISSION_TIMEOUT", { request: request.spec.id, ms }));
    this.#requests.push(request);
    this.#timers.set(request, setTimeout(expire, ms));
  }

  /** No-op for a request that does not wait. */
  remove(request: WorkerRequest): void {
    clearTimeout(this.#timers.get(request));
    if (this.#timers.delete(request)) this.#requests = this.#requests.filter((other) => other !== request);
  }
}
