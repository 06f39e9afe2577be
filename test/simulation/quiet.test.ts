import { expect, test, vi } from "vitest";
import { quietPlans } from "./quiet.ts";
import { run } from "./run.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

test("every transfer is complete where nothing goes wrong", async () => {
  for (const plan of quietPlans) {
    const { failure, outcomes } = await run(plan);
    expect(failure).toBeNull();
    expect([...outcomes.keys()], JSON.stringify(plan)).toEqual(["ok"]);
  }
});
