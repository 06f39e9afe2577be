import { expect, test, vi } from "vitest";
import { explore, seedsFrom } from "./explore.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

// Half of 5,000 seeds: vitest runs the two files on two cores.
test("invariants I1 to I8 hold with hostile networks, clocks and processes: even seeds", {
  timeout: 600_000,
}, async () => {
  const { runs, steps, report } = await explore(seedsFrom(2, 2500, 2));
  if (report !== null) throw new Error(report);
  expect(runs).toBe(2500);
  expect(steps).toBeGreaterThan(100 * runs);
});
