import { writeFileSync } from "node:fs";
import { expect, test, vi } from "vitest";
import { mutations } from "./mutations.ts";
import { planOf } from "./plan.ts";
import { isAllComplete, quietPlans } from "./quiet.ts";
import { rowName } from "./rows.ts";
import { run } from "./run.ts";
import { scenes } from "./scenes.ts";

vi.mock("../../src/ids.ts", async (original) =>
  (await import("./seeded_ids.ts")).seeded(await original<typeof import("../../src/ids.ts")>()),
);

const seeds = Number(process.env.KVT_SIM_MUTATION_SEEDS ?? 0);
const only = new RegExp(process.env.KVT_SIM_ONLY ?? "");
const [share = 0, shares = 1] = (process.env.KVT_SIM_SHARE ?? "0/1").split("/").map(Number);
/** Of the seeds that take a row, those that each of its changes is tried with. */
const TRIES = 150;
const QUICK_SEEDS = 40;
const QUICK_MUTATIONS = 16;

/** The seeds from 1 on that take each row. A run does not differ before it takes the row, so no other seed can notice a change of it. */
async function seedsOfRows(count: number): Promise<Map<string, number[]>> {
  const takers = new Map<string, number[]>();
  for (let seed = 1; seed <= count; seed++) {
    const { coverage, failure } = await run(planOf(seed));
    expect(failure).toBeNull();
    for (const row of coverage.keys()) {
      const of = takers.get(row) ?? [];
      if (of.length < TRIES) of.push(seed);
      takers.set(row, of);
    }
  }
  return takers;
}

interface Result {
  readonly name: string;
  /** By which seed, 0: by a plan that is written; null: by none. */
  readonly caught: number | null;
  readonly tried: number;
}

async function judge(mutation: ReturnType<typeof mutations>[number], tries: readonly number[]): Promise<Result> {
  const restore = mutation.apply();
  try {
    for (const plan of quietPlans) {
      if (!isAllComplete(await run(plan))) return { name: mutation.name, caught: 0, tried: 0 };
    }
    for (const { plan } of scenes.filter(({ row }) => row === rowOf(mutation))) {
      if ((await run(plan)).failure !== null) return { name: mutation.name, caught: 0, tried: 0 };
    }
    for (const [index, seed] of tries.entries()) {
      if ((await run(planOf(seed))).failure !== null) return { name: mutation.name, caught: seed, tried: index + 1 };
    }
  } finally {
    restore();
  }
  return { name: mutation.name, caught: null, tried: tries.length };
}

// Takes long, so it runs by hand: npm run sim -- --mutations (docs/simulation.md).
test.runIf(seeds > 0)("every row of the session tables matters", { timeout: 36_000_000 }, async () => {
  const takers = await seedsOfRows(seeds);
  const results: Result[] = [];
  const mine = mutations()
    .filter(({ name }) => only.test(name))
    .filter((_, index) => index % shares === share);
  for (const mutation of mine) results.push(await judge(mutation, takers.get(rowOf(mutation)) ?? []));
  if (process.env.KVT_SIM_OUT !== undefined) writeFileSync(process.env.KVT_SIM_OUT, JSON.stringify(results));
  expect(results).toHaveLength(mine.length);
});

const rowOf = ({ role, state, event }: ReturnType<typeof mutations>[number]): string => rowName(role, state, event);

test("a receiver that does not join its link is noticed, though it ends in time", async () => {
  const mutation = mutations().find(({ name }) => name.includes("QUEUED --turn") && name.endsWith("without joinLink"));
  if (mutation === undefined) throw new Error("there is no such change");
  expect((await judge(mutation, [])).caught).toBe(0);
});

test("rows that many runs take can't be removed unnoticed", { timeout: 120_000 }, async () => {
  const takers = await seedsOfRows(QUICK_SEEDS);
  const removals = mutations()
    .filter(({ name }) => name.endsWith(": removed"))
    .map((mutation) => ({ mutation, tries: takers.get(rowOf(mutation)) ?? [] }))
    .sort((left, right) => right.tries.length - left.tries.length)
    .slice(0, QUICK_MUTATIONS);
  for (const { mutation, tries } of removals) {
    const { name, caught } = await judge(mutation, tries);
    expect(caught, name).not.toBeNull();
  }
});

test("every change of a row that transfers take in which nothing goes wrong is noticed", {
  timeout: 120_000,
}, async () => {
  const takers = await seedsOfRows(QUICK_SEEDS);
  const taken = new Set<string>();
  for (const plan of quietPlans) for (const row of (await run(plan)).coverage.keys()) taken.add(row);
  const unnoticed: string[] = [];
  const all = mutations().filter((mutation) => taken.has(rowOf(mutation)));
  for (const mutation of all) {
    const { name, caught } = await judge(mutation, takers.get(rowOf(mutation)) ?? []);
    if (caught === null) unnoticed.push(name);
  }
  expect(unnoticed).toEqual([]);
  expect(all.length).toBeGreaterThan(100);
});
