import type { WorkerRequest } from "./request.ts";

export interface Chunk {
  readonly request: WorkerRequest;
  readonly tokens: number;
}

export interface ChunkBudget {
  /** Tokens a step may compute. */
  readonly budget: number;
  /** Tokens of it that decoding takes. */
  readonly rows: number;
  /** Smallest useful chunk: below it a call costs more than it computes. */
  readonly minimum: number;
}

/**
 * Divides a step's tokens among the prompts that are being computed: an equal share each, what is left in order. Whoever gets nothing
 * stands first the next time (the step loop moves the served to the end).
 */
export function planPrefill(prefilling: readonly WorkerRequest[], budget: ChunkBudget): Chunk[] {
  if (prefilling.length === 0) return [];
  // Decoding never takes it all: a prompt that waits for blocks' sake makes no progress otherwise.
  let left = Math.max(budget.budget - budget.rows, Math.min(budget.minimum, budget.budget));
  const share = Math.max(Math.floor(left / prefilling.length), Math.min(budget.minimum, left));
  const given = new Map<WorkerRequest, number>();
  for (const limit of [share, left]) {
    for (const request of prefilling) {
      const already = given.get(request) ?? 0;
      const tokens = Math.min(remaining(request) - already, limit, left);
      if (tokens <= 0) continue;
      given.set(request, already + tokens);
      left -= tokens;
    }
  }
  return [...given].map(([request, tokens]) => ({ request, tokens }));
}

const remaining = (request: WorkerRequest): number => request.promptTokens - request.computedTokens;
