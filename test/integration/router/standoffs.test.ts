import { afterAll, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { until } from "../waits.ts";
import { ask } from "../worker/client.ts";
import { holdsNothing } from "../worker/inspect.ts";
import { type Overrides, tinyModel, Workers } from "../worker/worker_process.ts";
import { startRouterFor } from "./workers_here.ts";

/** 32 blocks; every request needs 17 to 25 of them, so that two can never be on one worker. */
const { kvCache } = defaultWorkerSettings(tinyModel);
const small: Overrides = { kvCache: { ...kvCache, enableBlockReuse: false, maxTokens: 1024 } };
const bodies = [520, 600, 680, 760].map((tokens, index) => ({
  prompt: Array.from({ length: tokens }, (_, at) => 5 + ((at * 7 + index * 31) % 300)),
  max_tokens: 3 + 2 * index,
  ignore_eos: true,
  temperature: 0,
}));

const workers = new Workers();
afterAll(() => workers[Symbol.asyncDispose]());

it.each(["context_first", "generation_first"] as const)(
  "a burst of requests that need more than half a pool each, on two workers of both roles, is answered: %s",
  async (scheduleStyle) => {
    const both = [await workers.start(small), await workers.start(small)] as const;
    const servers = both.map(({ url }) => ({ url, origin: url }));
    const group = { servers, policy: "round_robin" } as const;
    await using router = await startRouterFor(...both, { context: group, generation: group, scheduleStyle });
    const expected = [];
    for (const body of bodies) expected.push((await ask(both[0].url, "completion", body)).text);
    const answers = await Promise.all(
      Array.from({ length: 16 }, (_, index) => ask(router.url, "completion", bodies[index % bodies.length] ?? {})),
    );
    for (const [index, { text }] of answers.entries()) expect(text).toBe(expected[index % bodies.length]);
    for (const worker of both) {
      await until("nothing is held", () => holdsNothing(worker));
      await worker.kill();
    }
  },
  120_000,
);
