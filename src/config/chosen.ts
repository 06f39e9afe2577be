import type { EffectiveValue } from "./settings.ts";

export type Layer = "env" | "flag" | "file";

export interface Candidate<T> {
  readonly value: T;
  /** Shown as the value's origin: `ctx.yaml:4`, `--port`, `env KVT_LOG_LEVEL`. */
  readonly origin: string;
}

/** Picks each value by precedence (S10) and remembers where it came from (S9). */
export class Chosen {
  readonly #order: readonly Layer[];
  readonly #values: EffectiveValue[] = [];

  /** @param order weakest first; the default is weaker than all */
  constructor(order: readonly Layer[]) {
    this.#order = order;
  }

  pick<T>(key: string, fallback: T, candidates: { readonly [L in Layer]?: Candidate<T> | undefined }): T {
    let chosen: Candidate<T> = { value: fallback, origin: "default" };
    for (const layer of this.#order) chosen = candidates[layer] ?? chosen;
    this.#values.push({ key, value: chosen.value, origin: chosen.origin });
    return chosen.value;
  }

  get values(): readonly EffectiveValue[] {
    return this.#values;
  }
}

const show = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value)) ?? "null";

/** One aligned line a key: `cache_transceiver_config.backend = UCX    (ctx.yaml:3)`. */
export function renderEffective(values: readonly EffectiveValue[]): string[] {
  const left = values.map(({ key, value }) => `${key} = ${show(value)}`);
  const width = Math.min(64, Math.max(0, ...left.map((text) => text.length)));
  return values.map(({ origin }, i) => `${(left[i] ?? "").padEnd(width)}  (${origin})`);
}
