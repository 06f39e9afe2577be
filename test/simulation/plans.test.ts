import { readdirSync, readFileSync } from "node:fs";
import { expect, test, vi } from "vitest";
import type { Plan } from "./plan.ts";
import { run } from "./run.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

const plans = new URL("plans/", import.meta.url);

// Shrunk plans of seeds that once failed. They outlive changes of the generator.
test.for(readdirSync(plans))("what failed once passes: %s", async (file) => {
  const plan = JSON.parse(readFileSync(new URL(file, plans), "utf8")) as Plan;
  expect((await run(plan)).failure).toBeNull();
});
