import { KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import type { CancelOutcome, ReceiveTransfer, TransferReport } from "../transceiver/api.ts";
import { type BlockReservations, mustHold } from "./block_reservations.ts";
import type { Sample } from "./engine.ts";
import { asKvError } from "./engine_calls.ts";
import { firstSampleOf, firstTokensOf } from "./first_tokens.ts";
import type { RequestRole, WorkerRequest } from "./request.ts";
import { isTerminal } from "./request_state.ts";
import type { SchedulerOptions, TransferPort } from "./scheduler_options.ts";

/** What the transfers of requests tell the scheduler. */
export interface HandoffListener {
  /** Somebody wants the KV of this generation-first request: now it may take blocks. */
  pulled(request: WorkerRequest): void;
  /** Its KV is here; `first` is the token it goes on after. */
  received(request: WorkerRequest, first: Sample): void;
  /** Ends a request that has not answered, wherever it stands. */
  stop(request: WorkerRequest, error: KvError): void;
  /** Ends a request that nothing works for. */
  fail(request: WorkerRequest, error: KvError): void;
  /** It has answered, and nothing of it is held any more. */
  forget(request: WorkerRequest): void;
}

export interface HandoffOptions extends Pick<SchedulerOptions, "transfers" | "nowMs" | "onTransfer" | "onReceived"> {
  readonly blocks: BlockReservations;
}

/** The KV that requests of this worker hand to others and get from others. */
export class Handoffs {
  readonly #options: HandoffOptions;
  readonly #listener: HandoffListener;
  /** Generation-first: nobody has asked for their KV yet. */
  readonly #expecting = new Set<WorkerRequest>();
  readonly #receiving = new Set<WorkerRequest>();

  constructor(options: HandoffOptions, listener: HandoffListener) {
    this.#options = options;
    this.#listener = listener;
  }

  get possible(): boolean {
    return this.#options.transfers !== null;
  }

  get expecting(): number {
    return this.#expecting.size;
  }

  get receiving(): number {
    return this.#receiving.size;
  }

  /**
   * Blocks are taken only for who has a reader that holds its own: two workers that each hold the blocks of requests the other one has no
   * room for would wait for ever.
   */
  expectPull(request: WorkerRequest, contextId: RequestId): void {
    const expecting = new AbortController();
    request.expecting = expecting;
    this.#expecting.add(request);
    this.#port()
      .awaitPull(contextId, expecting.signal)
      .then(
        () => {
          if (request.abortedWith !== null) return;
          this.#expecting.delete(request);
          request.change("pulled");
          this.#listener.pulled(request);
        },
        (error: unknown) => {
          if (request.abortedWith === null) this.#listener.stop(request, asKvError(error, "kv.awaitPull"));
        },
      );
  }

  /** Generation-first: what is computed from now on can be fetched at once. False: it could not be offered, and the request has failed. */
  stream(request: WorkerRequest, contextId: RequestId): boolean {
    // What is still being copied is ready with the first chunk.
    const isOffered = this.#send(request, contextId, request.computedTokens - (request.part?.tokens ?? 0));
    if (isOffered) request.change("stream");
    return isOffered;
  }

  /** The prompt is computed: its KV belongs to the offer alone from now on. False: as for `stream`. */
  offer(request: WorkerRequest, contextId: RequestId, first: Sample): boolean {
    // Also when token 0 ends the answer: the generation worker sees that for itself.
    if (request.streaming !== null) request.streaming.finish(firstTokensOf(request, first));
    else if (!this.#send(request, contextId)) return false;
    request.offer = request.streaming;
    this.#options.blocks.remember(request, request.promptTokens, true);
    this.#options.blocks.release(request);
    request.change("offer");
    return true;
  }

  #send(request: WorkerRequest, contextId: RequestId, ready?: number): boolean {
    try {
      request.streaming = this.#port().send({
        requestId: contextId,
        tokens: request.promptTokens,
        blocks: mustHold(request),
        ...(ready === undefined ? {} : { ready }),
      });
    } catch (error) {
      this.#listener.fail(request, asKvError(error, "kv.send"));
      return false;
    }
    request.streaming.done.then(
      (report) => {
        request.report = report;
        request.change("delivered");
        this.#listener.forget(request);
        this.#options.onTransfer?.(request, "send", report);
      },
      (error: unknown) => this.#undelivered(request, asKvError(error, "kv.send")),
    );
    return true;
  }

  /** Nobody fetches it any more: what is not computed yet need not be. */
  #undelivered(request: WorkerRequest, error: KvError): void {
    if (request.offer !== null) {
      request.change("fail");
      this.#listener.forget(request);
    } else if (request.abortedWith === null) this.#listener.stop(request, error);
  }

  /** Ends the offer of a request that has answered. */
  cancelOffer(request: WorkerRequest, error: KvError): CancelOutcome {
    request.abortedWith = error;
    return request.offer?.cancel(error.message) ?? "not_found";
  }

  /** What a request brings a state for will not be fetched: its context worker may let it go. @throws KvError BAD_STATE */
  decline({ spec: { role } }: WorkerRequest): void {
    if (role.kind === "generation" && role.peer === undefined && role.state !== "") this.#port().decline(role.state);
  }

  /** Nobody wants the request any more; a transfer that began tells its sender itself. */
  abandon(request: WorkerRequest): void {
    if (request.receiving !== null) return;
    try {
      this.decline(request);
    } catch {
      // A state that can't be read names nobody.
    }
  }

  /** Ends the offer that a state names. @throws KvError BAD_STATE, TRANSCEIVER_DISABLED */
  release(state: string): CancelOutcome {
    return this.#port().release(state);
  }

  /** The generation worker of a generation-first request waits for an offer that will not be made. */
  refuse(request: WorkerRequest): void {
    const { role } = request.spec;
    if (role.kind !== "context" || !role.generationFirst || request.streaming !== null) return;
    this.#options.transfers?.refuse(role.contextId);
  }

  /** Fetches the KV of an admitted request. */
  receive(request: WorkerRequest, role: Extract<RequestRole, { kind: "generation" }>): void {
    this.#receiving.add(request);
    const table = this.#options.blocks.sharePrompt(request);
    const { promptTokens: tokens } = request;
    const source =
      role.peer === undefined ? { state: role.state } : { peer: role.peer, requestId: role.contextId, tokens };
    try {
      const transfer = this.#port().receive({ ...source, blocks: table, skipTokens: request.computedTokens });
      request.receiving = transfer;
      request.change("receive");
      arrival(transfer, request).then(
        (report) => {
          request.report = report;
          this.#received(request, role);
          this.#options.onTransfer?.(request, "receive", report);
        },
        (error: unknown) => this.#receiveFailed(request, asKvError(error, "kv.receive")),
      );
      const why = mismatch(transfer, request, role.contextId);
      if (why !== null) this.#listener.stop(request, new KvError("BAD_STATE", { why }));
    } catch (error) {
      this.#listener.fail(request, asKvError(error, "kv.receive"));
    } finally {
      table.release();
    }
  }

  #received(request: WorkerRequest, role: Extract<RequestRole, { kind: "generation" }>): void {
    this.#receiving.delete(request);
    if (request.abortedWith !== null) {
      this.#settleQuarantine(request);
      return;
    }
    const { blocks, nowMs, onReceived } = this.#options;
    request.receivedMs = nowMs();
    request.computedTokens = request.promptTokens;
    request.change("received");
    onReceived?.(mustHold(request));
    blocks.remember(request, request.promptTokens);
    const first = role.firstToken ?? firstSampleOf(request);
    if (first !== undefined) {
      this.#listener.received(request, first);
      return;
    }
    const why = "a prefill brings exactly one first token";
    const peer = role.peer?.instance ?? "the context worker";
    this.#listener.fail(request, new KvError("PROTOCOL", { peer, why }));
  }

  #receiveFailed(request: WorkerRequest, error: KvError): void {
    this.#receiving.delete(request);
    if (request.abortedWith === null) this.#listener.fail(request, error);
    else this.#settleQuarantine(request);
  }

  /** Gives up a receive that runs: the caller hears at once, the session holds the blocks that it may still write. */
  cancelReceive(request: WorkerRequest, error: KvError): void {
    const outcome = request.receiving?.cancel(error.message);
    this.#options.blocks.release(request);
    request.change(outcome === "in_flight" ? "quarantine" : "fail");
    request.reject(error);
  }

  /** The outcome was told when it was given up; its blocks are free when no read can touch them. */
  #settleQuarantine(request: WorkerRequest): void {
    void request.receiving?.released.then(() => {
      if (!isTerminal(request.state)) request.change("fail");
      this.#listener.forget(request);
    });
  }

  /** No transfer works for it any more. */
  forget(request: WorkerRequest): void {
    this.#expecting.delete(request);
    this.#receiving.delete(request);
  }

  #port(): TransferPort {
    const { transfers } = this.#options;
    if (transfers === null) throw new KvError("TRANSCEIVER_DISABLED", {});
    return transfers;
  }
}

/** Also the tokens that are copied here: from then on the blocks may be reused, and so offered. A copy that fails ends the request. */
async function arrival(transfer: ReceiveTransfer, { copying }: WorkerRequest): Promise<TransferReport> {
  const report = await transfer.done;
  await copying?.catch(() => {});
  return report;
}

function mismatch(transfer: ReceiveTransfer, request: WorkerRequest, contextId: RequestId | null): string | null {
  if (transfer.tokens !== request.promptTokens) {
    return `it offers ${transfer.tokens} tokens, the prompt has ${request.promptTokens}`;
  }
  return contextId === null || contextId === transfer.requestId
    ? null
    : `it belongs to request ${transfer.requestId}, ctx_request_id names ${contextId}`;
}
