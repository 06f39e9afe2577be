import { describe, expect, it } from "vitest";
import type { Resources } from "../../integration/held_resources.ts";
import { until } from "../../integration/waits.ts";
import { ask, askPair, type Body } from "../../integration/worker/client.ts";
import { goldens } from "../../integration/worker/golden.ts";
import { blocksOf } from "../../integration/worker/inspect.ts";
import { POOL_TOKENS, SoakDeployment } from "./deployment.ts";
import { type PlannedRequest, type Prompt, promptsOf, requestOf } from "./plan.ts";

/** It goes on until both are over. */
const REQUESTS = Number(process.env.KVT_SOAK_REQUESTS ?? 0);
const SECONDS = Number(process.env.KVT_SOAK_SECONDS ?? 40);
const SEED = Number(process.env.KVT_SOAK_SEED ?? 20_261_130);
const LANES = 12;
const NUMBERED_PROMPTS = 40;
const SAMPLE_MS = 1_000;
const PRINT_MS = Math.max(10_000, SECONDS * 20);
/** One hung request is a failure long before the test's own limit. */
const REQUEST_MS = 60_000;
/** What V8 keeps more or less of from one collection to the next; a leak of blocks, bodies or sessions is more. */
const RSS_GROWTH_KIB = 32 * 1024;

const EVERY_BLOCK: Body = {
  prompt: Array.from({ length: 1900 }, (_, index) => 5 + (index % 300)),
  // 64 blocks, as long as the engine takes: two at once need every block of the pool.
  max_tokens: POOL_TOKENS / 2 - 1900,
  ignore_eos: true,
  temperature: 0,
};

interface Sample {
  readonly atMs: number;
  readonly resources: readonly Resources[];
}

const counts = { right: 0, left: 0, wrong: 0, failed: 0 };
const failures: string[] = [];

async function run(
  url: string,
  { prompt, stream, leaveAfterMs }: PlannedRequest,
  index: number,
  expected: ReadonlyMap<Prompt, string>,
): Promise<void> {
  const leave = new AbortController();
  const timer = leaveAfterMs === null ? undefined : setTimeout(() => leave.abort(), leaveAfterMs);
  const signal = AbortSignal.any([leave.signal, AbortSignal.timeout(REQUEST_MS)]);
  try {
    const body = { ...prompt.body, ...(stream ? { stream: true } : {}) };
    const { text } = await ask(url, prompt.kind, body, { signal });
    if (text === expected.get(prompt)) counts.right++;
    else {
      counts.wrong++;
      failures.push(`request ${index} (${prompt.name}): wrong tokens: ${text}`);
    }
  } catch (error) {
    if (leave.signal.aborted) counts.left++;
    else {
      counts.failed++;
      failures.push(`request ${index} (${prompt.name}): ${error}`);
    }
  } finally {
    clearTimeout(timer);
  }
}

const mib = (kib: number): string => (kib / 1024).toFixed(0);
const median = (values: readonly number[]): number =>
  [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;

/** Growth of RssAnon from the second third of the time to the last, in KiB, for each process. The first is warming up. */
function growth(samples: readonly Sample[]): number[] {
  const third = Math.floor(samples.length / 3);
  const level = (part: readonly Sample[], index: number): number =>
    median(part.map(({ resources }) => resources[index]?.rssAnonKib ?? 0));
  const [middle, last] = [samples.slice(third, 2 * third), samples.slice(2 * third)];
  return (samples[0]?.resources ?? []).map((_, index) => level(last, index) - level(middle, index));
}

const isAsBefore = (now: readonly Resources[], before: readonly Resources[]): boolean =>
  now.every(({ descriptors, pools }, index) => {
    const start = before[index];
    return start !== undefined && descriptors <= start.descriptors && pools <= start.pools;
  });

describe(`a soak with seed ${SEED}`, () => {
  it(
    "gives no wrong token, and all memory, descriptors and blocks come back",
    async () => {
      await using deployment = await SoakDeployment.start();
      const { router, parts, contexts, generations } = deployment;
      const prompts = promptsOf(SEED, NUMBERED_PROMPTS);
      const expected = new Map<Prompt, string>();
      // One worker, nothing moved: what every request through router, context and generation worker must give.
      for (const prompt of prompts) {
        expected.set(prompt, (await ask(contexts[0]?.url ?? "", prompt.kind, prompt.body)).text);
      }
      for (const { name, outputText } of goldens) {
        const prompt = prompts.find((other) => other.name === name);
        expect(prompt && expected.get(prompt), name).toBe(outputText);
      }
      const [context, generation] = [contexts[0], generations[0]];
      if (context === undefined || generation === undefined) throw new Error("no workers");
      const whole = (await ask(context.url, "completion", EVERY_BLOCK)).text;

      const throughAllPairs = async (): Promise<void> => {
        for (const one of contexts) {
          for (const other of generations) {
            const { text } = await askPair({ context: one, generation: other }, "completion", EVERY_BLOCK);
            expect(text).toBe(whole);
          }
        }
      };

      const startedMs = performance.now();
      const samples: Sample[] = [];
      const sample = (): void =>
        void samples.push({ atMs: performance.now() - startedMs, resources: deployment.resources() });
      const print = (): void => {
        const seconds = ((performance.now() - startedMs) / 1000).toFixed(0);
        const rss = deployment.resources().map(({ rssAnonKib }) => mib(rssAnonKib));
        console.log(
          `${seconds} s  ${JSON.stringify(counts)}  RssAnon MiB of ${parts.length} processes: ${rss.join(" ")}`,
        );
      };
      let next = 0;
      const isOver = (): boolean => next >= REQUESTS && performance.now() - startedMs >= SECONDS * 1000;
      const lane = async (): Promise<void> => {
        while (!isOver() && counts.failed + counts.wrong < 20) {
          const index = next++;
          await run(router.url, requestOf(SEED, index, prompts), index, expected);
        }
      };
      // All connections that the load needs are open from the start, so that their number can be compared.
      await Promise.all(
        Array.from({ length: LANES }, (_, index) =>
          run(router.url, { ...requestOf(SEED, index, prompts), leaveAfterMs: null }, index, expected),
        ),
      );
      await throughAllPairs();
      // The longest text starts the thread that such texts are tokenised in.
      const longest = goldens.reduce((one, other) => (other.ids.length > one.ids.length ? other : one));
      for (const { url } of deployment.workers) await ask(url, longest.kind, longest.body);
      const before = deployment.resources();
      const timers = [setInterval(sample, SAMPLE_MS), setInterval(print, PRINT_MS)];
      try {
        await Promise.all(Array.from({ length: LANES }, lane));
      } finally {
        for (const timer of timers) clearInterval(timer);
      }
      print();

      await until("nothing is held by requests", async () => {
        const all = await Promise.all(deployment.workers.map(blocksOf));
        return all.every(
          ({ pinned, quarantined, sends, receives }) =>
            pinned === 0 && quarantined === 0 && sends.open === 0 && receives.open === 0,
        );
      });
      // Every block of each pool serves again: two requests at once on each side, and through all pairs.
      for (const worker of deployment.workers) {
        const both = [ask(worker.url, "completion", EVERY_BLOCK), ask(worker.url, "completion", EVERY_BLOCK)];
        for (const { text } of await Promise.all(both)) expect(text).toBe(whole);
      }
      await throughAllPairs();
      await until(
        "descriptors and pools are as at the start",
        async () => isAsBefore(deployment.resources(), before),
        30_000,
      ).catch(() =>
        failures.push(`descriptors and pools: ${JSON.stringify(before)} → ${JSON.stringify(deployment.resources())}`),
      );
      const grown = growth(samples);
      const after = deployment.resources();
      const rows = parts.map(({ name }, index) => {
        const [start, end] = [before[index], after[index]];
        const rss = `${mib(start?.rssAnonKib ?? 0)} | ${mib(end?.rssAnonKib ?? 0)} | ${mib(grown[index] ?? 0)}`;
        return `| ${name} | ${rss} | ${start?.descriptors} | ${end?.descriptors} |`;
      });
      const head =
        "| process | RssAnon MiB, start | end | growth, last third | descriptors, start | end |\n|---|---|---|---|---|---|";
      console.log(
        [`seed ${SEED}: ${JSON.stringify(counts)} in ${(performance.now() - startedMs) / 1000} s`, head, ...rows].join(
          "\n",
        ),
      );
      expect(failures).toEqual([]);
      expect(counts.right).toBeGreaterThan(0);
      expect(counts.left).toBeGreaterThan(0);
      for (const [index, kib] of grown.entries()) expect(kib, parts[index]?.name).toBeLessThan(RSS_GROWTH_KIB);
      for (const { process, name } of parts) {
        expect(process.output(), name).not.toMatch(/UNHANDLED|UnhandledPromise|internal defect/);
      }
    },
    600_000 + SECONDS * 1000,
  );
});
