import { z } from "zod";
import { type InstanceLayout, instanceDifferences, Layout } from "../layout.ts";
import type { Preparation, UpstreamWorker } from "./upstream_worker.ts";

/** A context and a generation worker between which KV can't move. */
export interface BadPair {
  readonly context: UpstreamWorker;
  readonly generation: UpstreamWorker;
  /** `layers here 5, there 4; ...`: every field, here is the context worker's. */
  readonly differences: string;
}

const Sizes = z.object({
  tpSize: z.int().min(1),
  ppSize: z.int().min(1),
  pipeline: z.array(z.int().min(1)).max(4096).optional(),
});
const PAIRS_NAMED_MAX = 4;

/**
 * Which workers can hand KV to each other, from what they say at GET /server_info. A worker of another make says nothing there, and one
 * of a later version may say more than we understand: such are not judged, the transfer itself will tell.
 */
export class Pairs {
  readonly #layouts = new WeakMap<Preparation, InstanceLayout | null>();
  /** A worker that starts again gets a new preparation, so nothing here grows old. */
  readonly #judged = new WeakMap<Preparation, WeakMap<Preparation, string>>();

  /** Why KV can't move from one to the other; empty: it can, or nobody knows. */
  differences(context: UpstreamWorker, generation: UpstreamWorker): string {
    const [from, to] = [context.preparation, generation.preparation];
    if (from === undefined || to === undefined || context === generation) return "";
    let known = this.#judged.get(from);
    if (known === undefined) {
      known = new WeakMap();
      this.#judged.set(from, known);
    }
    let differences = known.get(to);
    if (differences === undefined) {
      const [here, there] = [this.#layoutOf(from), this.#layoutOf(to)];
      differences = here === null || there === null ? "" : instanceDifferences(here, there);
      known.set(to, differences);
    }
    return differences;
  }

  /** All pairs that can't be used, in the order of the router's file. */
  bad(contexts: readonly UpstreamWorker[], generations: readonly UpstreamWorker[]): BadPair[] {
    return contexts.flatMap((context) =>
      generations
        .map((generation) => ({ context, generation, differences: this.differences(context, generation) }))
        .filter(({ differences }) => differences !== ""),
    );
  }

  #layoutOf(preparation: Preparation): InstanceLayout | null {
    const known = this.#layouts.get(preparation);
    if (known !== undefined) return known;
    const { tpSize, ppSize, pipeline, dpRank: _, ...shape } = preparation.info.kv_layout ?? {};
    const [layout, sizes] = [Layout.safeParse(shape), Sizes.safeParse({ tpSize, ppSize, pipeline })];
    const read = layout.success && sizes.success ? { layout: layout.data, ...sizes.data } : null;
    this.#layouts.set(preparation, read);
    return read;
  }
}

/** `context http://a to generation http://b: layers here 5, there 4`, for a message. */
export function tellPairs(pairs: readonly BadPair[]): string {
  const told = pairs
    .slice(0, PAIRS_NAMED_MAX)
    .map(({ context, generation, differences }) => `from ${context.url} to ${generation.url}: ${differences}`);
  const rest = pairs.length - told.length;
  return [...told, ...(rest > 0 ? [`and ${rest} more`] : [])].join(" | ");
}
