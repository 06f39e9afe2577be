import { readFileSync } from "node:fs";
import OpenAI, { APIError, BadRequestError } from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Deployment } from "../../src/cli/deployment.ts";
import { freePorts } from "../../src/cli/ports.ts";
import { buildKvt } from "../integration/cli/kvt_process.ts";

// The official client: what it types and reads must be there, whoever answers it.
const deployment = new Deployment(process.env);
const clients = new Map<string, OpenAI>();
const worker = "a worker";
const router = "a router before two workers";

beforeAll(async () => {
  buildKvt();
  const [port = 0, context = 0, generation = 0] = await freePorts(3);
  const basic = (name: string): string => `examples/basic/${name}`;
  const serve = (name: string, at: number, config: string) =>
    deployment.start({
      name,
      port: at,
      arguments: ["serve", "models/tiny.gguf", "--port", String(at), "--config", basic(config)],
    });
  const routerFile = deployment.routerFile(basic("disagg_config.yaml"), {
    router: port,
    context: [context],
    generation: [generation],
  });
  const members = [
    serve("context", context, "ctx_config.yaml"),
    serve("generation", generation, "gen_config.yaml"),
    deployment.start({ name: "router", port, arguments: ["disaggregated", "-c", routerFile] }),
  ];
  const never = new AbortController().signal;
  await Promise.all(members.map((member) => deployment.ready(member, 90_000, never)));
  const connect = (at: number): OpenAI =>
    new OpenAI({ baseURL: `http://127.0.0.1:${at}/v1`, apiKey: "none", maxRetries: 0 });
  clients.set(worker, connect(generation)).set(router, connect(port));
}, 120_000);
afterAll(() => deployment.stop());

interface GoldenPrompt {
  readonly name: string;
  readonly messages?: OpenAI.ChatCompletionMessageParam[];
  readonly text: string;
  readonly ids: readonly number[];
  readonly output_ids: readonly number[];
  readonly output_text: string;
}

const golden = JSON.parse(readFileSync(new URL("../../models/golden.json", import.meta.url), "utf8")) as {
  readonly prompts: readonly GoldenPrompt[];
};
const prompt = (name: string): GoldenPrompt => {
  const found = golden.prompts.find((one) => one.name === name);
  if (found === undefined) throw new Error(`golden.json has no ${name}`);
  return found;
};
const question = prompt("key-short");
const story = prompt("raw-lily");
const messages = question.messages ?? [];

describe.each([worker, router])("the official OpenAI client of %s", (server) => {
  let client: OpenAI;
  beforeAll(() => {
    const connected = clients.get(server);
    if (connected === undefined) throw new Error(`${server} did not start`);
    client = connected;
  });

  test("lists the model", async () => {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    expect(models).toEqual(["tiny"]);
  });

  test("gets a chat answer with usage and log probabilities", async () => {
    const answer = await client.chat.completions.create({
      model: "tiny",
      messages,
      temperature: 0,
      logprobs: true,
      top_logprobs: 2,
    });
    const [choice] = answer.choices;
    expect(choice?.message).toEqual({ role: "assistant", content: question.output_text, refusal: null });
    expect(choice?.finish_reason).toBe("stop");
    expect(answer.usage).toMatchObject({
      prompt_tokens: question.ids.length,
      completion_tokens: question.output_ids.length,
      total_tokens: question.ids.length + question.output_ids.length,
    });
    const tokens = choice?.logprobs?.content ?? [];
    expect(tokens.map(({ token }) => token).join("")).toBe(question.output_text);
    for (const { logprob, token, top_logprobs } of tokens) {
      expect(top_logprobs).toHaveLength(2);
      expect(top_logprobs[0]).toMatchObject({ token, logprob });
      expect(logprob).toBeLessThanOrEqual(0);
    }
  });

  test("streams a chat answer, the usage last", async () => {
    const stream = await client.chat.completions.create({
      model: "tiny",
      messages,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    const chunks = [];
    for await (const chunk of stream) {
      chunks.push(chunk);
      text += chunk.choices[0]?.delta.content ?? "";
    }
    expect(text).toBe(question.output_text);
    expect(chunks[0]?.choices[0]?.delta.role).toBe("assistant");
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: question.output_ids.length } });
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe("stop");
  });

  test("runs its own stream helper to the end", async () => {
    const runner = client.chat.completions.stream({ model: "tiny", messages, temperature: 0 });
    await expect(runner.finalContent()).resolves.toBe(question.output_text);
  });

  test("completes text with echo and a stop string", async () => {
    const answer = await client.completions.create({
      model: "tiny",
      prompt: story.text,
      temperature: 0,
      max_tokens: story.output_ids.length,
      echo: true,
      stop: [story.output_text.slice(-4)],
    });
    const cut = story.output_text.indexOf(story.output_text.slice(-4));
    expect(answer.choices[0]?.text).toBe(story.text + story.output_text.slice(0, cut));
    expect(answer.choices[0]?.finish_reason).toBe("stop");
  });

  test("reads a refusal as its own error class with field, code and request id", async () => {
    const refusal = await client.chat.completions
      .create({ model: "tiny", messages, n: 2 })
      .catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(BadRequestError);
    expect(refusal).toMatchObject({
      status: 400,
      param: "n",
      code: "unsupported_parameter",
      type: "invalid_request_error",
      requestID: expect.stringMatching(/./),
    });
  });

  test("reads a prompt that is too long as 413", async () => {
    const prompt = "word ".repeat(100_000);
    const refusal = await client.completions.create({ model: "tiny", prompt }).catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(APIError);
    expect(refusal).toMatchObject({ status: 413, code: "prompt_too_long" });
  });

  test("can leave in the middle of a stream", async () => {
    // ignore_eos: an extra of vLLM and of ours that the client's types don't know.
    const body = { model: "tiny", prompt: story.text, max_tokens: 1500, stream: true, ignore_eos: true } as const;
    const stream = await client.completions.create(body);
    let chunks = 0;
    for await (const _ of stream) {
      chunks++;
      if (chunks === 3) break;
    }
    const after = await client.completions.create({ model: "tiny", prompt: story.text, max_tokens: 1, temperature: 0 });
    expect(after.choices).toHaveLength(1);
  });
});

test("both answer a seeded, sampled request alike, log probabilities and all", async () => {
  const answers = [];
  for (const server of [worker, router]) {
    const answer = await clients.get(server)?.chat.completions.create({
      model: "tiny",
      messages: prompt("story-named").messages ?? [],
      temperature: 1,
      top_p: 0.95,
      seed: 7,
      max_tokens: 64,
      logprobs: true,
      top_logprobs: 3,
    });
    answers.push(answer?.choices);
  }
  expect(answers[0]?.[0]?.logprobs?.content?.length).toBeGreaterThan(20);
  expect(answers[1]).toEqual(answers[0]);
});
