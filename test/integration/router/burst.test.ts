import { expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { until } from "../waits.ts";
import { ask } from "../worker/client.ts";
import { holdsNothing } from "../worker/inspect.ts";
import { tinyModel } from "../worker/worker_process.ts";
import { metric, startHere } from "./workers_here.ts";

/** 32 blocks: the largest request below needs 13 of them, so that most of a burst has to wait. */
const POOL_TOKENS = 1024;
const { kvCache } = defaultWorkerSettings(tinyModel);
const small = { settings: { kvCache: { ...kvCache, enableBlockReuse: false, maxTokens: POOL_TOKENS } } };

const bodies = [3, 31, 32, 33, 100, 170, 300, 400].map((tokens, index) => ({
  prompt: Array.from({ length: tokens }, (_, at) => 5 + ((at * 7 + index * 31) % 300)),
  max_tokens: 3 + 2 * index,
  ignore_eos: true,
  temperature: 0,
}));

it.each([
  ["workers of one role each", false, "context_first"],
  ["workers of both roles, each waiting for the other one's blocks", true, "context_first"],
  ["workers of one role each, generation first", false, "generation_first"],
  ["workers of both roles, generation first", true, "generation_first"],
] as const)(
  "a burst of 200 requests over small pools ends with 200 right answers and no second try: %s",
  async (_how, mixed, scheduleStyle) => {
    await using here = await startHere({ context: small, generation: small, mixed, router: { scheduleStyle } });
    const expected = [];
    for (const body of bodies) expected.push((await ask(here.generation.url, "completion", body)).text);
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, index) =>
        ask(here.router.url, "completion", { ...bodies[index % bodies.length], stream: index % 3 === 0 }),
      ),
    );
    for (const [index, { text }] of answers.entries()) expect(text).toBe(expected[index % bodies.length]);
    for (const hop of ["ctx", "gen"]) expect(await metric(here.router, `${hop}_retry_requests`)).toBe(0);
    for (const worker of [here.context, here.generation]) {
      await until("nothing is held", () => holdsNothing(worker));
    }
  },
);
