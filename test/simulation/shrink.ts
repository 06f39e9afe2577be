import fc from "fast-check";
import { type Plan, planOf, plans } from "./plan.ts";
import { run } from "./run.ts";
import type { WorldOptions } from "./world.ts";

/** How long a failing plan is made smaller, about. */
const SHRINK_MS = 20_000;

/** Leaves out decisions, one after the other, as long as the run still fails. */
async function leaveOut(plan: Plan, fails: (plan: Plan) => Promise<boolean>): Promise<Plan> {
  let least = plan;
  for (let before = Number.POSITIVE_INFINITY; least.decisions.length < before; ) {
    before = least.decisions.length;
    for (const decision of [...least.decisions]) {
      const without = { ...least, decisions: least.decisions.filter((one) => one !== decision) };
      if (await fails(without)) least = without;
    }
  }
  return least;
}

/** Shrinking stays with the invariant that fell first. */
export const kindOf = (failure: Error | null): string => failure?.message.match(/\bI\d\b/)?.[0] ?? "another";

/** The plan of a seed that fails, made small: decisions are left out and fast-check shrinks their values, whichever gets further. */
export async function shrink(seed: number, options: Partial<WorldOptions> = {}): Promise<Plan> {
  const wanted = kindOf((await run(planOf(seed), options)).failure);
  const fails = async (plan: Plan): Promise<boolean> => {
    const { failure } = await run(plan, options);
    return failure !== null && kindOf(failure) === wanted;
  };
  const fewer = await leaveOut(planOf(seed), fails);
  let smaller: Plan | null = null;
  const property = fc.asyncProperty(plans, async (plan) => {
    if (!(await fails(plan))) return true;
    smaller = plan;
    return false;
  });
  await fc.check(property, { seed, numRuns: 1, interruptAfterTimeLimit: SHRINK_MS });
  if (smaller === null) return fewer;
  const both = await leaveOut(smaller, fails);
  return both.decisions.length <= fewer.decisions.length ? both : fewer;
}
