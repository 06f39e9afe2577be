import type { BlockHold, BlockPool } from "../kv/pool.ts";
import type { Transceiver, TransferReport } from "../transceiver/api.ts";
import type { AdmissionLimits } from "./admission.ts";
import type { DeparturePhase } from "./departures.ts";
import type { Engine } from "./engine.ts";
import type { CacheListener } from "./prefix_cache.ts";
import type { WorkerRequest } from "./request.ts";
import type { StateChange } from "./request_state.ts";

/** What the scheduler needs of a transceiver. */
export type TransferPort = Pick<Transceiver, "send" | "receive" | "release" | "decline" | "awaitPull" | "refuse">;

export interface SchedulerLimits extends AdmissionLimits {
  /** Requests that hold blocks at the same time. */
  readonly maxBatchSize: number;
  /** Tokens computed in one step: bounds how long a token of another request, and an abort, wait for a prompt. */
  readonly stepTokens: number;
  /** No --server_role: others may wait here for blocks that wait for them. */
  readonly bothRoles: boolean;
  /** A request that waits for blocks of older ones that wait for other workers gives way after this time. */
  readonly giveWayMs: number;
  /** Share of the pool for generation-first prefills that nobody has asked for yet; 0: they wait for that. */
  readonly earlyShare: number;
  /** Context requests whose KV was not fetched yet, from their arrival on; more are refused. */
  readonly maxOffers: number;
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
  /** Of a block that only begins as a prompt goes on, the beginning is copied. */
  readonly reuseParts: boolean;
  /** KV of a prefill that is streamed is handed over layer by layer, not only chunk by chunk. Default false. */
  readonly layerwise?: boolean;
  readonly nowMs: () => number;
  /** Told of each change of the prefix cache. */
  readonly cacheListener?: CacheListener;
  /** Each edge of each request, once. */
  readonly onChange?: (change: StateChange) => void;
  /** A transfer of this side is complete. */
  readonly onTransfer?: (request: WorkerRequest, direction: "send" | "receive", report: TransferReport) => void;
  /** Blocks of a request that nobody wanted any more are free, `ms` after the scheduler heard so. */
  readonly onFreed?: (phase: DeparturePhase, ms: number) => void;
  readonly onStep?: (step: { readonly rows: number; readonly prefillTokens: number; readonly ms: number }) => void;
  /** Test hook: may spoil received blocks before anything reads them. */
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
