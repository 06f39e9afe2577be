import { expect, test, vi } from "vitest";
import { run } from "./run.ts";
import { scenes } from "./scenes.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

test.for(scenes)("a scene takes its row, and all invariants hold: $row", async ({ row, plan }) => {
  const { failure, coverage } = await run(plan);
  expect(failure).toBeNull();
  expect([...coverage.keys()]).toContain(row);
});
