import { test, vi } from "vitest";
import { addCoverage, type Coverage, coverageTable } from "./coverage.ts";
import { planOf } from "./plan.ts";
import { run } from "./run.ts";
import { shrink } from "./shrink.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

import { writeFileSync } from "node:fs";
import { Session } from "node:inspector/promises";

test("dev", { timeout: 3600000 }, async () => {
  const first = Number(process.env.F ?? 1),
    n = Number(process.env.N ?? 1000);
  const coverage: Coverage = new Map();
  const outcomes = new Map<string, number>();
  let steps = 0;
  const kinds = new Map<string, number[]>();
  const ses = new Session();
  ses.connect();
  if (process.env.P) {
    await ses.post("Profiler.enable");
    await ses.post("Profiler.start");
  }
  const t = Date.now();
  const c0 = process.cpuUsage();
  for (let seed = first; seed < first + n; seed++) {
    const r = await run(planOf(seed));
    steps += r.steps;
    addCoverage(coverage, r.coverage);
    for (const [c, k] of r.outcomes) outcomes.set(c, (outcomes.get(c) ?? 0) + k);
    if (r.failure) {
      const m = r.failure.message.replace(/\d+/g, "N").slice(0, 160);
      kinds.set(m, [...(kinds.get(m) ?? []), seed]);
    }
  }
  if (process.env.P) {
    const { profile } = await ses.post("Profiler.stop");
    writeFileSync("/tmp/prof/p.json", JSON.stringify(profile));
  }
  const c1 = process.cpuUsage(c0);
  console.log("cpu ms", Math.round((c1.user + c1.system) / 1000));
  console.log(n, "runs", Date.now() - t, "ms", steps, "steps", [...outcomes].map(([c, k]) => `${c} ${k}`).join(", "));
  for (const [m, seeds] of kinds) console.log(seeds.length, seeds.slice(0, 5).join(), m);
  if (process.env.C) console.log(coverageTable(coverage));
  if (process.env.S) {
    const plan = await shrink(Number(process.env.S));
    const f = await run(plan, { tracing: true });
    console.log(JSON.stringify(plan), "\n", f.story, "\n", f.failure?.message);
  }
});
