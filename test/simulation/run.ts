import type { Coverage } from "./coverage.ts";
import type { Plan } from "./plan.ts";
import { resetIds } from "./seeded_ids.ts";
import { World, type WorldOptions } from "./world.ts";

export interface RunResult {
  readonly failure: Error | null;
  readonly story: string;
  readonly steps: number;
  readonly outcomes: ReadonlyMap<string, number>;
  readonly coverage: Coverage;
}

const STEPS_LIMIT = 100_000;

/** Runs a plan to its end: a while with work and trouble, then calm until all must have ended. The same plan gives the same run. */
export async function run(plan: Plan, options: Partial<WorldOptions> = {}): Promise<RunResult> {
  resetIds();
  const world = new World(plan, { tracing: false, defects: new Set(), created: () => {}, duties: true, ...options });
  const { time, oracle, endMs } = world;
  let steps = 0;
  const unhandled = (reason: unknown): void =>
    world.broken(`unhandled: ${reason instanceof Error ? reason.stack : reason}`);
  process.on("unhandledRejection", unhandled);
  try {
    while (world.failure === null && (await time.step(endMs))) {
      oracle.check();
      if (++steps > STEPS_LIMIT) world.broken("I8: the run does not come to rest");
    }
    if (world.failure === null) oracle.checkEnd();
  } catch (error) {
    world.broken(error instanceof Error ? (error.stack ?? error.message) : String(error));
  } finally {
    process.off("unhandledRejection", unhandled);
  }
  const outcomes = new Map<string, number>();
  for (const { outcome } of world.transfers.pulls) {
    const code = outcome === null ? "none" : outcome === "ok" ? "ok" : outcome.code;
    outcomes.set(code, (outcomes.get(code) ?? 0) + 1);
  }
  return { failure: world.failure, story: world.story, steps, outcomes, coverage: world.coverage };
}
