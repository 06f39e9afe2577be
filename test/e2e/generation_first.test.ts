import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../integration/waits.ts";
import { ask, type Body, Refused } from "../integration/worker/client.ts";
import { type Golden, goldens } from "../integration/worker/golden.ts";
import {
  expectAllStreamed,
  expectAllWhole,
  expectEightAtOnce,
  expectGolden,
  tokenizer,
} from "../integration/worker/golden_check.ts";
import { LeakWatch, POOL_TOKENS } from "../integration/worker/no_leak.ts";
import { type Deployed, type DeployedWorker, deploy } from "./deployed.ts";

let deployed: Deployed;
let leaks: LeakWatch;
beforeAll(async () => {
  deployed = await deploy({
    context: 2,
    generation: 2,
    poolTokens: POOL_TOKENS,
    settings: { scheduleStyle: "generation_first" },
  });
  leaks = await LeakWatch.begin(deployed.context, deployed.generation);
  // It may have to compile src/ first.
}, 180_000);
afterAll(async () => {
  await deployed?.[Symbol.asyncDispose]();
});

const goldenNamed = (name: string): Golden => goldens.find((golden) => golden.name === name) as Golden;
const run = (golden: Golden, more: Body = {}, id: string = randomUUID()) =>
  ask(deployed.router.url, golden.kind, { ...golden.body, ...more }, { id });
/** One worker by itself, without the router. */
const alone = (kind: Golden["kind"], body: Body, id?: string) =>
  ask((deployed.generation[0] as DeployedWorker).url, kind, body, id === undefined ? {} : { id });

interface Transfer {
  readonly event: string;
  readonly direction?: string;
  readonly chunks: number;
  readonly bytes: number;
}
async function receivedBy(workers: readonly DeployedWorker[], id: string): Promise<Transfer[]> {
  const all = await Promise.all(
    workers.map(async ({ url }) => {
      const reply = await fetch(`${url}/kv/transfers?request_id=${id}`);
      return ((await reply.json()) as { records: Transfer[] }).records;
    }),
  );
  return all.flat().filter(({ event, direction }) => event === "transfer" && direction === "receive");
}

/** Nothing is left of any request: no offer, no wait, no pull, no pinned block. */
async function settled(workers: readonly DeployedWorker[] = [...deployed.context, ...deployed.generation]) {
  for (const worker of workers) {
    await eventually(
      worker.stats,
      ({ blocks, sends, receives }) =>
        blocks.pinned === 0 && sends.open === 0 && sends.waiting === 0 && receives.open === 0,
    );
  }
}

describe("a golden answer in generation-first", () => {
  it("is right token for token, whole", async () => {
    await expectAllWhole(run);
    await settled();
  });

  it("is right streamed, with ending and usage", () => expectAllStreamed(run));

  it("is right eight at once", async () => {
    await expectEightAtOnce(run);
    await settled();
  });

  it("has moved while it was computed: a long prompt comes in several chunks, without the prompt's cached part", async () => {
    const golden = goldenNamed("key-1500");
    const prompt = { messages: [{ role: "user", content: `${"Once upon a time there was a fox. ".repeat(60)}Who?` }] };
    const id = randomUUID();
    await ask(deployed.router.url, "chat", { ...golden.body, ...prompt, max_tokens: 4 }, { id });
    const [transfer] = await receivedBy(deployed.generation, id);
    expect(transfer?.chunks).toBeGreaterThan(1);
    expect(transfer?.bytes).toBeGreaterThan(0);
  });

  it("has the seeded tokens and log probabilities of one worker alone, those of token 0 included", async () => {
    const sampled = { temperature: 0.9, top_p: 0.95, top_k: 50, repetition_penalty: 1.1, presence_penalty: 0.2 };
    for (const [index, golden] of goldens.entries()) {
      const logprobs = golden.kind === "chat" ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 };
      const body = { ...golden.body, ...sampled, ...logprobs, max_tokens: 24, seed: 7 + index };
      const [one, pair] = [await alone(golden.kind, body), await run(golden, body)];
      expect(pair.text, golden.name).toBe(one.text);
      expect(pair.logprobs).toEqual(one.logprobs);
      expect([pair.finish, pair.outputTokens]).toEqual([one.finish, one.outputTokens]);
      if (golden.kind !== "chat") continue;
      const streamed = await run(golden, { ...body, stream: true });
      expect(streamed.logprobs).toEqual(one.logprobs);
    }
  });

  it("is sampled from a request id alone as on one worker", async () => {
    const body = { prompt: "Once upon a time", temperature: 1, max_tokens: 40 };
    const pair = await ask(deployed.router.url, "completion", body, { id: "story-1" });
    expect(pair.text).toBe((await alone("completion", body, "story-1")).text);
  });

  it("keeps what token 0 brings: its part of a stop string, its place in max_tokens, its being the end", async () => {
    const hello = { messages: [{ role: "user", content: "Hello!" }], temperature: 0, max_tokens: 20 };
    const [first, second] = goldenNamed("hello").outputIds as [number, number];
    for (const body of [
      { ...hello, stop: [tokenizer.decode([first, second])] },
      { ...hello, stop: [tokenizer.decode([first])] },
      { ...hello, stop_token_ids: [first] },
      { ...hello, max_tokens: 1 },
      { ...hello, max_tokens: 2 },
    ]) {
      for (const stream of [false, true]) {
        const one = await alone("chat", body);
        const pair = await ask(deployed.router.url, "chat", { ...body, stream });
        expect(pair).toMatchObject({ text: one.text, finish: one.finish, stop: one.stop });
      }
    }
    await settled();
  });

  it("says how much of the prompt the context worker had cached", async () => {
    const golden = goldenNamed("key-700");
    // Both context workers have it after two.
    for (let i = 0; i < 2; i++) await run(golden);
    const reply = await run(golden);
    expect(reply.cachedTokens).toBe(golden.ids.length - 1);
  });
});

describe("what goes wrong in generation-first", () => {
  const long = (seed: number): Body => ({
    prompt: Array.from({ length: 1900 }, (_, at) => 300 + ((at * 7 + seed * 31) % 300)),
    temperature: 0,
    max_tokens: 4,
    ignore_eos: true,
  });

  it("a wrong request is told with the worker's words, once", async () => {
    const refused = await ask(deployed.router.url, "completion", { prompt: "a", suffix: "b" }).catch((e: unknown) => e);
    expect(refused).toMatchObject({ status: 400, code: "unsupported_parameter" });
    const tooLong = await ask(deployed.router.url, "completion", { prompt: "one two three ".repeat(20_000) }).catch(
      (error: unknown) => error,
    );
    expect(tooLong).toBeInstanceOf(Refused);
    expect((tooLong as Refused).status).toBe(413);
    await settled();
  });

  it("clients that leave at any moment leave nothing behind on either side", async () => {
    for (let delayMs = 0; delayMs <= 120; delayMs += 8) {
      const leave = new AbortController();
      const answer = ask(deployed.router.url, "completion", long(delayMs), { signal: leave.signal }).catch(() => null);
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      leave.abort();
      await answer;
    }
    await settled();
    for (const golden of goldens.slice(0, 4)) expectGolden(await run(golden), golden);
  });

  it("200, 16 at once, a third cancelled at random moments: the completed are right, nothing leaks", async () => {
    const small = goldens.filter(({ ids }) => ids.length < 200);
    let left = 200;
    let right = 0;
    const one = async (index: number): Promise<void> => {
      const golden = small[index % small.length] as Golden;
      const leave = new AbortController();
      const timer = index % 3 === 0 ? setTimeout(() => leave.abort(), Math.random() * 300) : undefined;
      const body = { ...golden.body, stream: index % 2 === 0 };
      try {
        const reply = await ask(deployed.router.url, golden.kind, body, { signal: leave.signal });
        expect(reply.text).toBe(golden.outputText);
        right++;
      } catch (error) {
        if (!leave.signal.aborted) throw error;
      } finally {
        clearTimeout(timer);
      }
    };
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        while (left > 0) await one(--left);
      }),
    );
    expect(right).toBeGreaterThan(130);
    await settled();
    await leaks.expectNone([...deployed.context, ...deployed.generation], await deployed.startFresh());
  });

  // Last: they take workers away.
  it("a context worker that is killed in the middle of prefills is replaced by the other one", async () => {
    const [victim, other] = deployed.context as [DeployedWorker, DeployedWorker];
    const answers = Array.from({ length: 6 }, (_, index) => ask(deployed.router.url, "completion", long(1000 + index)));
    await eventually(victim.stats, ({ sends }) => sends.open > 0);
    victim.process.child.kill("SIGKILL");
    const expected = await Promise.all(
      Array.from({ length: 6 }, (_, index) => alone("completion", long(1000 + index))),
    );
    for (const [index, reply] of (await Promise.all(answers)).entries()) expect(reply.text).toBe(expected[index]?.text);
    const survivors = [other, ...deployed.generation];
    await settled(survivors);
    await leaks.expectNone(survivors, await deployed.startFresh());
  });

  it("a generation worker that is killed while it waits is replaced by the other one", async () => {
    const [other, victim] = deployed.generation as [DeployedWorker, DeployedWorker];
    const context = deployed.context[1] as DeployedWorker;
    const answers = Array.from({ length: 6 }, (_, index) => ask(deployed.router.url, "completion", long(2000 + index)));
    await eventually(victim.stats, ({ receives }) => receives.open > 0);
    victim.process.child.kill("SIGKILL");
    const expected = await Promise.all(
      Array.from({ length: 6 }, (_, index) => alone("completion", long(2000 + index))),
    );
    for (const [index, reply] of (await Promise.all(answers)).entries()) expect(reply.text).toBe(expected[index]?.text);
    await settled([context, other]);
    await leaks.expectNone([context, other], await deployed.startFresh());
  });
});
