import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ask, askPair, type Body, contextHop, generationBody, post } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { expectAllStreamed, expectAllWhole, expectEightAtOnce, expectGolden, tokenizer } from "./golden_check.ts";
import { blocksOf, transfersOf } from "./inspect.ts";
import { type WorkerProcess, Workers, withoutReuse } from "./worker_process.ts";

const goldenNamed = (name: string): Golden => goldens.find((golden) => golden.name === name) as Golden;

describe("a context and a generation worker", () => {
  const workers = new Workers();
  let context: WorkerProcess;
  let generation: WorkerProcess;

  beforeAll(async () => {
    [context, generation] = await Promise.all([
      workers.start({ enableChunkedPrefill: true, maxNumTokens: 64 }),
      workers.start(),
    ]);
  });
  afterAll(() => workers[Symbol.asyncDispose]());

  const run = (golden: Golden, more: Body = {}) =>
    askPair({ context, generation }, golden.kind, { ...golden.body, ...more });

  it("answer every golden prompt token for token", () => expectAllWhole(run));

  it("answer them streamed with the same text, ending and usage", () => expectAllStreamed(run));

  it("answer eight at once as they answer one", () => expectEightAtOnce(run));

  it("give seeded sampled requests the tokens and log probabilities of one worker alone", async () => {
    const sampled = { temperature: 0.9, top_p: 0.95, top_k: 50, repetition_penalty: 1.1, presence_penalty: 0.2 };
    for (const [index, golden] of goldens.entries()) {
      const logprobs = golden.kind === "chat" ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 };
      // Beyond 2^53, and written out: the value must not pass through a double.
      const body = { ...golden.body, ...sampled, ...logprobs, max_tokens: 24, seed: 7 + index };
      const [alone, pair] = [
        await ask(generation.url, golden.kind, body),
        await askPair({ context, generation }, golden.kind, body),
      ];
      expect(pair.text, golden.name).toBe(alone.text);
      expect(pair.logprobs).toEqual(alone.logprobs);
      expect([pair.finish, pair.outputTokens]).toEqual([alone.finish, alone.outputTokens]);
    }
  });

  it("sample one story from a request id alone, on two workers as on one", async () => {
    const body = { prompt: "Once upon a time", temperature: 1, max_tokens: 40 };
    const alone = await ask(context.url, "completion", body, { id: "story-1" });
    const pair = await askPair({ context, generation }, "completion", body, { id: "story-1" });
    expect(pair.text).toBe(alone.text);
  });

  it("keep what token 0 brings: its part of a stop string, its half of a character, its place in max_tokens", async () => {
    const hello = { messages: [{ role: "user", content: "Hello!" }], temperature: 0, max_tokens: 20 };
    const spanning = tokenizer.decode((goldenNamed("hello").outputIds as number[]).slice(0, 2));
    for (const body of [
      { ...hello, stop: [spanning] },
      { ...hello, max_tokens: 2 },
      { ...hello, max_tokens: 5, logit_bias: { [String(byteToken(0xe2))]: 100 } },
    ]) {
      for (const stream of [false, true]) {
        const alone = await ask(generation.url, "chat", body);
        const pair = await askPair({ context, generation }, "chat", { ...body, stream });
        expect(pair).toMatchObject({ text: alone.text, finish: alone.finish, stop: alone.stop });
      }
    }
    const stopped = await askPair({ context, generation }, "chat", { ...hello, stop: [spanning] });
    expect(stopped).toMatchObject({ text: "", finish: "stop", stop: spanning, outputTokens: 2 });
  });

  it("make no transfer when token 0 ends the answer", async () => {
    const before = (await blocksOf(context)).sends.open;
    const hello = { messages: [{ role: "user", content: "Hello!" }], temperature: 0 };
    const first = goldenNamed("hello").outputIds[0];
    for (const [body, finish] of [
      [{ ...hello, max_tokens: 1 }, "length"],
      [{ ...hello, stop_token_ids: [first] }, "stop"],
      [{ ...hello, stop: [tokenizer.decode([first as number])] }, "stop"],
    ] as const) {
      const hop = await contextHop(context.url, "chat", body);
      expect(hop.finish).toBe(finish);
      expect(hop.params).toContain('"ctx_request_id"');
      expect(hop.params).not.toContain("encoded_opaque_state");
    }
    expect((await blocksOf(context)).sends.open).toBe(before);
  });

  it("pass a ctx_request_id of 2^62 + 1 from worker to caller to worker unchanged", async () => {
    const id = (2n ** 62n + 1n).toString();
    const special = await workers.start({}, { KVT_TEST_CTX_REQUEST_ID: id });
    const golden = goldenNamed("name");
    const hop = await contextHop(special.url, golden.kind, golden.body);
    expect(hop.params).toContain(`"ctx_request_id":${id}`);
    const answer = await ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, hop));
    expectGolden(answer, golden);
    const wrong = { ...hop, params: hop.params.replace(id, (2n ** 62n + 2n).toString()) };
    const again = await contextHop(special.url, golden.kind, golden.body);
    wrong.params = again.params.replace(/"ctx_request_id":\d+/, `"ctx_request_id":${id}`);
    const refused = await ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, wrong)).catch(
      (error: unknown) => error,
    );
    expect(refused).toMatchObject({ status: 400, code: "bad_state" });
    await special.kill();
  });

  it("use the router's disagg_request_id as the id of the hand-off", async () => {
    const golden = goldenNamed("place");
    const id = (2n ** 61n + 3n).toString();
    const hop = await contextHop(context.url, golden.kind, golden.body, { params: `,"disagg_request_id":${id}` });
    expect(hop.params).toContain(`"ctx_request_id":${id}`);
    expect(hop.params).toContain(`"disagg_request_id":${id}`);
    expectGolden(await ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, hop)), golden);
  });

  it("refuse a state that is not ours, changed or used twice", async () => {
    const golden = goldenNamed("sum");
    const hop = await contextHop(context.url, golden.kind, golden.body);
    const send = (params: string): Promise<unknown> =>
      ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, { ...hop, params })).catch(
        (error: unknown) => error,
      );
    const foreign = hop.params.replace(/"encoded_opaque_state":"[^"]*"/, '"encoded_opaque_state":"Zm9yZWlnbg=="');
    expect(await send(foreign)).toMatchObject({ status: 400, code: "bad_state" });
    expect(await send(hop.params)).toMatchObject({ text: golden.outputText });
    expect(await send(hop.params)).toMatchObject({ status: 404 });
  });

  it("reuse prefixes on both sides: same text, the context side's cached_tokens, fewer bytes moved", async () => {
    const pair = { context: await workers.start(), generation: await workers.start() };
    const golden = goldenNamed("key-1500");
    const replies = [];
    for (const id of ["first", "second"]) replies.push(await askPair(pair, golden.kind, golden.body, { id }));
    for (const reply of replies) expectGolden(reply, golden);
    const hop = await contextHop(pair.context.url, golden.kind, golden.body);
    const usage = /"usage":(\{.*?\}\})/.exec(hop.reply)?.[1] ?? "";
    // All but the token whose logits are wanted.
    const cached = golden.ids.length - 1;
    expect(usage).toContain(`"cached_tokens":${cached}`);
    const withUsage = { ...hop, params: hop.params.replace(/\}$/, `,"ctx_usage":${usage}}`) };
    const reply = await ask(pair.generation.url, golden.kind, generationBody(golden.kind, golden.body, withUsage));
    expect(reply.cachedTokens).toBe(cached);
    const [first, second] = [await transfersOf(pair.generation, "first"), await transfersOf(pair.generation, "second")];
    expect(first[0]?.bytes).toBeGreaterThan(100 * (second[0]?.bytes ?? Number.POSITIVE_INFINITY));
    await Promise.all([pair.context.kill(), pair.generation.kill()]);
  });

  it("answer otherwise from an empty cache: the answers above were in the KV that moved", async () => {
    const empty = await workers.start({}, { KVT_TEST_ZERO_KV: "1" });
    const golden = goldenNamed("key-700");
    const reply = await askPair({ context, generation: empty }, golden.kind, golden.body);
    expect(reply.text).not.toBe(golden.outputText);
    await empty.kill();
  });

  it("let an offer go when told to", async () => {
    const lonely = await workers.start(withoutReuse, { KVT_TEST_CTX_REQUEST_ID: String(2n ** 62n + 1n) });
    const hop = await contextHop(lonely.url, "completion", { prompt: "Once upon a time", max_tokens: 9 });
    const state = /"encoded_opaque_state":"([^"]*)"/.exec(hop.params)?.[1];
    expect((await blocksOf(lonely)).free).toBeLessThan((await blocksOf(lonely)).total);
    const release = (id: bigint): string => `{"ctx_request_id":${id},"encoded_opaque_state":"${state}"}`;
    const other = post(lonely.url, "/kv/release", release(2n ** 62n));
    await expect(other).rejects.toMatchObject({ status: 400, code: "bad_state" });
    expect((await blocksOf(lonely)).free).toBeLessThan((await blocksOf(lonely)).total);
    expect(await post(lonely.url, "/kv/release", release(2n ** 62n + 1n))).toContain("cancelled");
    const { free, total } = await blocksOf(lonely);
    expect(free).toBe(total);
    // Known to have ended; after a while it is unknown, which is 404.
    expect(await post(lonely.url, "/kv/release", { encoded_opaque_state: state })).toContain("already_complete");
    const foreign = post(lonely.url, "/kv/release", { encoded_opaque_state: "Zm9yZWlnbg==" });
    await expect(foreign).rejects.toMatchObject({ status: 400, code: "bad_state" });
    await lonely.kill();
  });
});

/** The token that is this one byte. */
function byteToken(byte: number): number {
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const bytes = tokenizer.bytesOf(id);
    if (bytes.length === 1 && bytes[0] === byte) return id;
  }
  throw new Error(`no token for byte ${byte}`);
}
