import { addCoverage, type Coverage } from "./coverage.ts";
import { type Plan, planOf } from "./plan.ts";
import { allRows } from "./rows.ts";
import { type RunResult, run } from "./run.ts";
import { shrink } from "./shrink.ts";

/** What many runs did, as data that travels between processes. */
export interface Summary {
  readonly runs: number;
  readonly steps: number;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly coverage: Readonly<Record<string, number>>;
  /** Seeds that fail, with what fails. */
  readonly failures: readonly (readonly [seed: number, what: string])[];
  /** Of the first of them. */
  readonly report: string | null;
}

/** Seed, shrunk plan and story: all that is needed to see what happened, and to see it again. */
export function report(what: string, plan: Plan, { failure, story }: RunResult): string {
  return [
    `${what}: ${failure?.message ?? "it passes"}`,
    "",
    `The plan, shrunk (npm run sim -- --plan FILE runs it):`,
    JSON.stringify(plan, null, 1),
    "",
    "What happened (ms of true time):",
    story,
  ].join("\n");
}

async function storyOf(seed: number, message: string): Promise<string> {
  const plan = await shrink(seed);
  const again = await run(plan, { tracing: true });
  return report(`seed ${seed} fails (${message}; npm run sim -- --from ${seed} --seeds 1)`, plan, again);
}

/** Goes on behind a seed that fails: a second one may tell more. */
export async function explore(seeds: Iterable<number>): Promise<Summary> {
  const outcomes: Record<string, number> = {};
  const coverage: Coverage = new Map();
  const failures: [number, string][] = [];
  let story: string | null = null;
  let runs = 0;
  let steps = 0;
  for (const seed of seeds) {
    const result = await run(planOf(seed));
    if (result.failure !== null) {
      const { message } = result.failure;
      failures.push([seed, message]);
      story ??= await storyOf(seed, message);
      continue;
    }
    runs++;
    steps += result.steps;
    for (const [code, count] of result.outcomes) outcomes[code] = (outcomes[code] ?? 0) + count;
    addCoverage(coverage, result.coverage);
  }
  const rows = allRows.map((row) => [row, coverage.get(row) ?? 0]);
  return { runs, steps, outcomes, coverage: Object.fromEntries(rows), failures, report: story };
}

/** `count` seeds from `first` on, every `step`th. */
export const seedsFrom = (first: number, count: number, step = 1): number[] =>
  Array.from({ length: count }, (_, index) => first + index * step);
