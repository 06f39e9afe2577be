import { isKvError, KvError } from "../errors.ts";
import { mustHold } from "./block_reservations.ts";
import type { Engine, LayerListener, Sample } from "./engine.ts";
import type { PartOfBlock } from "./prefix_cache.ts";
import type { WorkerRequest } from "./request.ts";

/**
 * Computes the next `count` prompt tokens of a request; with the last of them comes token 0. A failure is noted in
 * `request.abortedWith`, unless the request was aborted meanwhile. The caller ends the step (`leaveStep`) in the same turn in which it
 * goes on: an abort in between would give blocks back that it still works with.
 */
export async function computeChunk(
  engine: Engine,
  request: WorkerRequest,
  count: number,
  onLayer?: LayerListener,
): Promise<Sample | undefined> {
  const start = request.computedTokens;
  const isLast = start + count === request.promptTokens;
  const controller = new AbortController();
  request.step = controller;
  request.inStep = true;
  try {
    const sample = await engine.prefill({
      tokens: request.spec.prompt.subarray(start, start + count),
      startPos: start,
      blockTable: mustHold(request).ids,
      ...(isLast ? { sampling: request.sampling() } : {}),
      ...(onLayer === undefined ? {} : { onLayer }),
      signal: controller.signal,
    });
    if (isLast && sample === undefined) {
      throw new KvError("INTERNAL", { where: "engine.prefill", why: "it gave no sample" });
    }
    return sample;
  } catch (error) {
    request.abortedWith ??= asKvError(error, "engine.prefill");
    return undefined;
  }
}

/**
 * Copies the beginning of the first block that the request does not share. Both blocks are held until it is done, whatever becomes of the
 * request.
 */
export async function copyPart(engine: Engine, request: WorkerRequest, { hold, tokens }: PartOfBlock): Promise<void> {
  const index = Math.floor(request.cachedTokens / engine.geometry.tokensPerBlock);
  const target = mustHold(request).share(index, index + 1);
  const [[from], [to]] = [hold.ids, target.ids];
  try {
    if (from !== undefined && to !== undefined) await engine.copyTokens(from, to, tokens);
  } finally {
    target.release();
    hold.release();
  }
}

/** No engine call touches the request's blocks any more. */
export function leaveStep(request: WorkerRequest): void {
  request.inStep = false;
  request.step = null;
}

/** One decode call. It ends early once none of its requests is wanted any more: a single one is not worth the others' tokens. */
export class DecodeCall {
  readonly #rows: readonly WorkerRequest[];
  readonly #controller = new AbortController();

  constructor(rows: readonly WorkerRequest[]) {
    this.#rows = rows;
  }

  /** Samples in the order of the rows; as with `computeChunk` the caller ends the step, and a failure is noted in `abortedWith` of each row that was not aborted. */
  async run(engine: Engine): Promise<readonly Sample[]> {
    for (const request of this.#rows) request.inStep = true;
    try {
      const samples = await engine.decode(
        this.#rows.map((request) => ({
          token: request.tokens.at(-1) ?? 0,
          pos: request.tokens.length - 1,
          blockTable: mustHold(request).ids,
          sampling: request.sampling(),
        })),
        this.#controller.signal,
      );
      if (samples.length === this.#rows.length) return samples;
      const why = `${samples.length} samples for ${this.#rows.length} rows`;
      throw new KvError("INTERNAL", { where: "engine.decode", why });
    } catch (error) {
      for (const request of this.#rows) request.abortedWith ??= asKvError(error, "engine.decode");
      return [];
    }
  }

  abortIfUnwanted(): void {
    if (this.#rows.every(({ abortedWith }) => abortedWith !== null)) this.#controller.abort();
  }
}

/** What anything that was thrown is to a request. */
export function asKvError(error: unknown, where: string): KvError {
  if (isKvError(error)) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new KvError("INTERNAL", { where, why }, { cause: error });
}
