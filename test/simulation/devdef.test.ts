import { test, vi } from "vitest";
import { defects } from "./defects.ts";
import { planOf } from "./plan.ts";
import { run } from "./run.ts";
import type { World } from "./world.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);
test("dev", { timeout: 3600000 }, async () => {
  const only = process.env.D?.split(",");
  for (const d of defects) {
    if (only && !only.includes(d.number)) continue;
    let current: World | null = null;
    const undo = d.apply?.(() => current as World);
    let found = "";
    const n = Number(process.env.N ?? 1000);
    for (let seed = 1; seed <= n && !found; seed++) {
      const r = await run(planOf(seed), {
        defects: new Set(d.inWorld ? [d.inWorld] : []),
        created: (w) => {
          current = w;
        },
      });
      if (r.failure) found = `${seed} ${r.failure.message.slice(0, 150)}`;
    }
    undo?.();
    console.log(d.number, d.what, "=>", found || "NOT FOUND");
  }
});
