import { expect, test, vi } from "vitest";
import { defects } from "./defects.ts";
import { planOf } from "./plan.ts";
import { run } from "./run.ts";
import { kindOf, shrink } from "./shrink.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

const MOST_DECISIONS = 3;

test("a plan gives the same run each time, step for step", async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const [first, second] = [await run(planOf(seed), { tracing: true }), await run(planOf(seed), { tracing: true })];
    expect(second.story).toBe(first.story);
    expect(second.steps).toBe(first.steps);
  }
});

test("a run that fails is shrunk to few decisions, which fail again and tell the story", {
  timeout: 120_000,
}, async () => {
  const frees = defects.find(({ what }) => what === "the receiver frees at cancel");
  const restore = frees?.apply?.(() => {
    throw new Error("this defect needs no world");
  });
  try {
    let seed = 1;
    let first = await run(planOf(seed));
    while (first.failure === null) first = await run(planOf(++seed));
    const before = planOf(seed).decisions.length;
    const plan = await shrink(seed);
    expect(plan.decisions.length).toBeLessThanOrEqual(MOST_DECISIONS);
    expect(plan.decisions.length).toBeLessThan(before);
    // Written down and read again, as --plan does.
    const again = await run(JSON.parse(JSON.stringify(plan)), { tracing: true });
    expect(kindOf(again.failure)).toBe(kindOf(first.failure));
    expect(again.story).toMatch(/cancel/);
  } finally {
    restore?.();
  }
  expect((await run(planOf(1))).failure).toBeNull();
});
