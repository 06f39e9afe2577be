import { expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { until } from "../waits.ts";
import { ask } from "../worker/client.ts";
import { goldens } from "../worker/golden.ts";
import { expectGolden } from "../worker/golden_check.ts";
import { blocksOf } from "../worker/inspect.ts";
import { tinyModel } from "../worker/worker_process.ts";
import { startHere } from "./workers_here.ts";

const { kvCache } = defaultWorkerSettings(tinyModel);
const golden = goldens.find(({ name }) => name === "key-700");
if (golden === undefined) throw new Error("no golden prompt key-700");

it("a prefill is over before its generation worker has room to ask for it, which then gets all of it and token 0", async () => {
  const steps: string[] = [];
  const note = (side: string) => (change: { readonly requestId: string; readonly to: string }) => {
    if (change.requestId === "early") steps.push(`${side} ${change.to}`);
  };
  let isAnswered = false;
  await using here = await startHere({
    context: { hooks: { onChange: note("context") } },
    // 32 blocks: one long answer takes 26 of them, the prompt and its answer would take 24.
    generation: { settings: { kvCache: { ...kvCache, maxTokens: 1024 } }, hooks: { onChange: note("generation") } },
    router: { scheduleStyle: "generation_first" },
  });
  const long = { prompt: "Once upon a time", max_tokens: 820, temperature: 0, ignore_eos: true };
  const blocker = ask(here.generation.url, "completion", long).then(() => {
    isAnswered = true;
  });
  await until("the pool is taken", async () => (await blocksOf(here.generation)).free < 8);
  const reply = ask(here.router.url, golden.kind, golden.body, { id: "early" });
  await expect.poll(() => steps, { timeout: 10_000 }).toContain("context DISAGG_CONTEXT_TRANS_IN_PROGRESS");
  expect(isAnswered).toBe(false);
  expect(steps.filter((step) => step.startsWith("generation"))).toEqual([]);
  expectGolden(await reply, golden);
  await blocker;
  expect(steps).toContain("context DISAGG_CONTEXT_COMPLETE");
  await until("the prefill's blocks are free", async () => (await blocksOf(here.context)).pinned === 0);
});
