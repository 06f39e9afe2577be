import type { KvError } from "../errors.ts";
import { AdmissionQueue, dependsOnPeer, leavesRoom, mayStartEarly } from "./admission.ts";
import type { BlockReservations } from "./block_reservations.ts";
import type { WorkerRequest } from "./request.ts";
import type { SchedulerLimits } from "./scheduler_options.ts";
import { Standoffs } from "./standoffs.ts";

export interface AdmitterOptions {
  readonly limits: SchedulerLimits;
  readonly blocks: BlockReservations;
  /** All requests of the worker that have not ended. */
  readonly live: ReadonlySet<WorkerRequest>;
  /** How many receive or compute. */
  readonly busy: () => number;
  /** How many generation-first requests nobody has asked for yet. */
  readonly expecting: () => number;
}

export interface AdmitterListener {
  /** It holds its blocks now. May end it at once. */
  begin(request: WorkerRequest): void;
  /** It has waited too long. */
  expired(request: WorkerRequest, error: KvError): void;
  /** Its other half holds blocks elsewhere that an older request waits for. */
  giveWay(request: WorkerRequest, error: KvError): void;
}

/** Who gets blocks next: in order of arrival, but never so that two workers could wait for each other for ever. */
export class Admitter {
  readonly #options: AdmitterOptions;
  readonly #listener: AdmitterListener;
  readonly #waiting: AdmissionQueue;
  readonly #standoffs: Standoffs;

  constructor(options: AdmitterOptions, listener: AdmitterListener) {
    const { limits, blocks, live } = options;
    this.#options = options;
    this.#listener = listener;
    this.#waiting = new AdmissionQueue(limits, (request, error) => listener.expired(request, error));
    this.#standoffs = new Standoffs({
      afterMs: limits.giveWayMs,
      blocks: blocks.total,
      blocksFor: blocks.blocksFor,
      live,
      waiting: this.#waiting,
      giveWay: (request, error) => listener.giveWay(request, error),
    });
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** @throws KvError QUEUE_FULL */
  checkRoom(): void {
    this.#waiting.checkRoom();
  }

  /** It waits for its turn, for a limited time. */
  push(request: WorkerRequest): void {
    this.#waiting.push(request);
  }

  /** No-op for a request that does not wait. */
  remove(request: WorkerRequest): void {
    this.#waiting.remove(request);
  }

  /** Gives a request blocks before its reader has come, if nobody can miss them: so prefill does not wait for another worker's first step. */
  startEarly(request: WorkerRequest): boolean {
    const { limits, blocks, live, busy, expecting } = this.#options;
    const { maxBatchSize: batch, bothRoles, earlyShare, maxSeqLen } = limits;
    const { total, blocksFor } = blocks;
    if (this.#waiting.length + expecting() > 0 || busy() >= Math.ceil(batch / 2)) return false;
    if (!mayStartEarly(request, live, { blocks: total, blocksFor, earlyShare, maxSeqLen })) return false;
    if (bothRoles && !this.#leavesRoom(request)) return false;
    if (!blocks.reserve(request)) return false;
    request.startedEarly = true;
    request.change("early");
    this.#listener.begin(request);
    return true;
  }

  /** Gives blocks to as many as there are blocks and places in the batch for. */
  admit(): void {
    const { limits, blocks, busy } = this.#options;
    const { maxBatchSize: batch, bothRoles } = limits;
    let roomIsShort = false;
    for (const request of this.#waiting) {
      if (busy() >= batch) break;
      if (bothRoles && dependsOnPeer(request)) {
        roomIsShort ||= !this.#leavesRoom(request);
        // Those that the peer waits for go past it.
        if (roomIsShort) continue;
      }
      if (!blocks.reserve(request)) {
        this.#standoffs.blockedAt(request);
        return;
      }
      this.#waiting.remove(request);
      this.#listener.begin(request);
    }
    this.#standoffs.blockedAt(null);
  }

  #leavesRoom(request: WorkerRequest): boolean {
    const { limits, blocks, live } = this.#options;
    const { total, blocksFor } = blocks;
    return leavesRoom(
      request,
      { live, waiting: this.#waiting },
      { blocks: total, batch: limits.maxBatchSize, blocksFor },
    );
  }

  /** Nobody waits any more. */
  close(): void {
    this.#standoffs.blockedAt(null);
  }
}
