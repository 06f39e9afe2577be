import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ask, type Reply } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { type WorkerProcess, Workers, withoutReuse } from "./worker_process.ts";

describe("one worker alone", () => {
  const workers = new Workers();
  let worker: WorkerProcess;

  beforeAll(async () => {
    worker = await workers.start();
  });
  afterAll(() => workers[Symbol.asyncDispose]());

  const run = (golden: Golden, more: Record<string, unknown> = {}): Promise<Reply> =>
    ask(worker.url, golden.kind, { ...golden.body, ...more });

  it("answers every golden prompt token for token", async () => {
    for (const golden of goldens) expectGolden(await run(golden), golden);
  });

  it("answers them streamed with the same text, ending and usage", async () => {
    for (const golden of goldens) {
      const streamed = await run(golden, { stream: true, stream_options: { include_usage: true } });
      const { cachedTokens: _cached, ...whole } = await run(golden);
      expect(streamed).toMatchObject({ ...whole, logprobs: golden.kind === "chat" ? whole.logprobs : null });
    }
  });

  it("answers eight at once as it answers one", async () => {
    for (let from = 0; from < goldens.length; from += 8) {
      const group = goldens.slice(from, from + 8);
      const replies = await Promise.all(group.map((golden) => run(golden)));
      for (const [index, reply] of replies.entries()) expectGolden(reply, group[index] as Golden);
    }
  });

  it("computes prompts in chunks of 64 tokens with the same result", async () => {
    const chunked = await workers.start({
      maxNumTokens: 64,
      enableChunkedPrefill: true,
      ...withoutReuse,
    });
    const replies = await Promise.all(goldens.map((golden) => ask(chunked.url, golden.kind, golden.body)));
    for (const [index, reply] of replies.entries()) {
      expectGolden(reply, goldens[index] as Golden);
      expect(reply.cachedTokens).toBe(0);
    }
    expect(await chunked.stop()).toBe(0);
  });

  it("reuses a prefix without changing the answer", async () => {
    const golden = goldens.find(({ name }) => name === "key-1500") as Golden;
    const fresh = await workers.start();
    const first = await ask(fresh.url, golden.kind, golden.body);
    const second = await ask(fresh.url, golden.kind, golden.body);
    expect([first.cachedTokens, second.cachedTokens]).toEqual([0, golden.ids.length - 1]);
    expectGolden(second, golden);
    expect(await fresh.stop()).toBe(0);
  });
});
