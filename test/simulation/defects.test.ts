import { expect, test, vi } from "vitest";
import { defects } from "./defects.ts";
import { planOf } from "./plan.ts";
import { run } from "./run.ts";
import type { World } from "./world.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

// lease-model.md section 6. What the seeds catch there they must not complain of without the defect: odd_seeds and even_seeds.
test.each(defects)("a deliberate defect is caught: $number, $what", { timeout: 300_000 }, async (defect) => {
  const { apply, inWorld, from = 1, within, by, in: written } = defect;
  let current: World | null = null;
  const restore = apply?.(() => current as World);
  let failure: Error | null = null;
  try {
    const seeds = Array.from({ length: within }, (_, index) => planOf(from + index));
    for (const plan of written === undefined ? seeds : [written]) {
      if (failure !== null) break;
      const created = (world: World): void => {
        current = world;
      };
      ({ failure } = await run(plan, {
        created,
        duties: false,
        defects: new Set(inWorld === undefined ? [] : [inWorld]),
      }));
    }
  } finally {
    restore?.();
  }
  expect(failure?.message).toMatch(by);
});
