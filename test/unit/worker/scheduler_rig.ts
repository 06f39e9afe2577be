import { BlockPool } from "../../../src/kv/pool.ts";
import { GREEDY } from "../../../src/worker/engine.ts";
import type { RequestSpec } from "../../../src/worker/request.ts";
import type { StateChange } from "../../../src/worker/request_state.ts";
import { Scheduler } from "../../../src/worker/scheduler.ts";
import type { SchedulerLimits, TransferPort } from "../../../src/worker/scheduler_options.ts";
import { TokenEngine } from "./token_engine.ts";

/** A scheduler over a token engine, with everything a test looks at. */
export interface Rig {
  readonly engine: TokenEngine;
  readonly pool: BlockPool;
  readonly scheduler: Scheduler;
  readonly changes: StateChange[];
}

export function rig(
  options: {
    readonly blocks?: number;
    readonly limits?: Partial<SchedulerLimits>;
    readonly transfers?: (engine: TokenEngine, pool: BlockPool) => TransferPort;
    readonly reusePrefixes?: boolean;
    readonly reuseParts?: boolean;
    readonly nowMs?: () => number;
  } = {},
): Rig {
  const engine = new TokenEngine();
  const pool = new BlockPool({
    blocks: options.blocks ?? 64,
    blockBytes: 64,
    hooks: {
      // As KVT_CHECK does it: what is freed is spoiled, so that a late reader shows.
      freed: (ids) => {
        for (const id of ids) engine.memory.delete(id);
      },
    },
  });
  const changes: StateChange[] = [];
  const scheduler = new Scheduler({
    engine,
    pool,
    transfers: options.transfers?.(engine, pool) ?? null,
    limits: {
      maxBatchSize: 8,
      stepTokens: 16,
      maxPromptTokens: engine.geometry.maxSeqLen,
      maxQueueSize: 100,
      queueTimeoutMs: 10_000,
      offerMs: 10_000,
      maxSeqLen: engine.geometry.maxSeqLen,
      stepLimitMs: 60_000,
      maxOffers: 100,
      bothRoles: true,
      earlyShare: 0,
      giveWayMs: 1_000,
      ...options.limits,
    },
    reusePrefixes: options.reusePrefixes ?? true,
    reuseParts: options.reuseParts ?? false,
    nowMs: options.nowMs ?? (() => performance.now()),
    onChange: (change) => changes.push(change),
  });
  return { engine, pool, scheduler, changes };
}

let counter = 0;

/** A greedy request; `output` collects its tokens. */
export function spec(
  prompt: readonly number[],
  maxTokens: number,
  more: Partial<RequestSpec> = {},
): RequestSpec & { readonly output: number[] } {
  const output: number[] = [];
  return {
    id: `request-${counter++}`,
    role: { kind: "aggregated" },
    prompt: Uint32Array.from(prompt),
    maxTokens,
    minTokens: 0,
    sampling: GREEDY,
    stopTokens: new Map(),
    onToken: (sample) => {
      output.push(sample.token);
      return null;
    },
    ...more,
    output,
  };
}

export const tokensOf = (length: number, salt = 0): number[] =>
  Array.from({ length }, (_, index) => (index * 13 + salt * 17 + 5) % 97);
