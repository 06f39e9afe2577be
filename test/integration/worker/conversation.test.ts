import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { OpenedEngine, tokensOf } from "../engine/opened_engine.ts";
import { startRouterFor } from "../router/workers_here.ts";
import { ask, askPair, contextHop, generationBody } from "./client.ts";
import { goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { blocksOf, transfersOf } from "./inspect.ts";
import { type Overrides, tinyModel, type WorkerProcess, Workers, withoutReuse, withPool } from "./worker_process.ts";

const { kvCache } = defaultWorkerSettings(tinyModel);
const TURN_TOKENS = 24;
/** Five layers, K and V, two heads of 32 values, f32. */
const TOKEN_BYTES = 5 * 2 * 2 * 32 * 4;

const first = goldens.find(({ name }) => name === "key-700") ?? goldens[0];
if (first === undefined) throw new Error("no golden prompts");

/** What the user says after each answer. */
const questions = [[300, 301, 302, 303, 304, 305, 306], Array.from({ length: 50 }, (_, index) => 310 + index), [299]];

interface Turn {
  readonly prompt: readonly number[];
  readonly text: string;
}

describe("a conversation over a pair of workers", () => {
  const workers = new Workers();
  let alone: WorkerProcess;
  const turns: Turn[] = [];

  const bodyOf = (prompt: readonly number[]) => ({
    prompt,
    max_tokens: TURN_TOKENS,
    temperature: 0,
    ignore_eos: true,
    logprobs: 0,
  });

  beforeAll(async () => {
    alone = await workers.start(withoutReuse);
    // The engine says which tokens the answers are; one worker alone, which text that is.
    await using oracle = await OpenedEngine.open(tinyModel, { blocks: 64 });
    let prompt = [...first.ids];
    for (const question of questions) {
      const answer = tokensOf(await oracle.generate(prompt, TURN_TOKENS));
      turns.push({ prompt, text: (await ask(alone.url, "completion", bodyOf(prompt))).text });
      prompt = [...prompt, ...answer, ...question];
    }
  });
  afterAll(() => workers[Symbol.asyncDispose]());

  const withReuse = (more: Partial<typeof kvCache>, rest: Overrides = {}): Overrides => ({
    ...rest,
    kvCache: { ...kvCache, ...more },
  });
  const cases: Record<string, { context: Overrides; generation: Overrides; known: (tokens: number) => number }> = {
    "every token that is known": { context: {}, generation: {}, known: (tokens) => tokens },
    "whole blocks that are known": {
      context: withReuse({ enablePartialReuse: false }),
      generation: withReuse({ enablePartialReuse: false }),
      known: (tokens) => Math.floor(tokens / 32) * 32,
    },
    "every token that is known, between unequal ranks and blocks": {
      context: withReuse({ tokensPerBlock: 16 }, { pipelineParallelSize: 2 }),
      generation: withReuse({ tokensPerBlock: 64 }, { tensorParallelSize: 2 }),
      known: (tokens) => tokens,
    },
  };

  describe.each(["context_first", "generation_first"] as const)("%s", (scheduleStyle) => {
    it.each(Object.keys(cases))("leaves %s where it is: later turns move the new tokens only", async (name) => {
      const { context: left, generation: right, known } = cases[name] as (typeof cases)[string];
      const [context, generation] = await Promise.all([workers.start(left), workers.start(right)]);
      await using router = await startRouterFor(context, generation, { scheduleStyle });
      let held = 0;
      for (const [number, { prompt, text }] of turns.entries()) {
        const id = `turn-${number}`;
        const reply = await ask(router.url, "completion", bodyOf(prompt), { id });
        expect([reply.text, reply.promptTokens, reply.outputTokens]).toEqual([text, prompt.length, TURN_TOKENS]);
        const received = (await transfersOf(generation, id)).map(({ bytes }) => bytes);
        expect(received.reduce((sum, bytes) => sum + bytes, 0)).toBe((prompt.length - known(held)) * TOKEN_BYTES);
        // The last token of an answer was never evaluated.
        held = prompt.length + TURN_TOKENS - 1;
      }
      const [sent] = await Promise.all([blocksOf(context), blocksOf(generation)]);
      expect(sent).toMatchObject({ pinned: 0, quarantined: 0 });
      await Promise.all([context.stop(), generation.stop()]);
    });
  });

  it("finds offered blocks as they were, however much else was computed before they are fetched", async () => {
    // 40 blocks; the offer has 23.
    const [context, generation] = await Promise.all([workers.start(withPool(1280)), workers.start()]);
    const hop = await contextHop(context.url, first.kind, first.body);
    for (let salt = 0; salt < 6; salt++) {
      const prompt = Array.from({ length: 300 }, (_, index) => 260 + ((index * 7 + salt * 11) % 200));
      await ask(context.url, "completion", { prompt, max_tokens: 8, temperature: 0 });
    }
    expect((await blocksOf(context)).pinned).toBe(Math.ceil(first.ids.length / 32));
    expectGolden(await ask(generation.url, first.kind, generationBody(first.kind, first.body, hop)), first);
    expectGolden(await askPair({ context, generation }, first.kind, first.body), first);
    await Promise.all([context.stop(), generation.stop()]);
  });
});
