import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SseParser } from "../../src/openai/index.ts";
import { type Deployed, type DeployedWorker, deploy } from "./deployed.ts";

let deployed: Deployed;
beforeAll(async () => {
  // A worker that is stopped shall look healthy until a test says otherwise.
  deployed = await deploy({ context: 2, generation: 2, hooks: { probe: { intervalMs: 200, timeoutMs: 60_000 } } });
  // It may have to compile src/ first.
}, 180_000);
afterAll(async () => {
  await deployed?.[Symbol.asyncDispose]();
});

const pathOf = { completion: "/v1/completions", chat: "/v1/chat/completions" } as const;
const story = (name: string) => ({
  prompt: `Once upon a time there was ${name}`,
  max_tokens: 24,
  temperature: 1,
  seed: 5,
  ignore_eos: true,
  stream: true,
});

/** The events of a stream, each when it is asked for. */
async function* eventsOf(url: string, path: string, body: object, id: string): AsyncGenerator<string> {
  const response = await fetch(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": id },
    body: JSON.stringify(body),
  });
  const parser = new SseParser();
  for await (const piece of response.body as ReadableStream<Uint8Array>) yield* parser.push(piece);
}

async function all(events: AsyncGenerator<string>): Promise<string[]> {
  const list: string[] = [];
  for await (const event of events) list.push(event);
  return list;
}

/** Without the second in which it began. */
const parsed = (event: string): unknown =>
  event === "[DONE]" ? event : JSON.parse(event, (key, value) => (key === "created" ? 0 : value));

const alone = (kind: keyof typeof pathOf, body: object, id: string): Promise<string[]> =>
  all(eventsOf((deployed.generation[0] as DeployedWorker).url, pathOf[kind], body, id));

const signal = (workers: readonly DeployedWorker[], name: NodeJS.Signals): void => {
  for (const { process } of workers) process.child.kill(name);
};

describe("a stream of two workers", () => {
  it.each([
    ["completion", { ...story("a fox"), logprobs: 3 }],
    ["completion", { ...story("a cat"), stop: ["in the"], echo: true }],
    ["completion", { ...story("a dog"), max_tokens: 2, stream_options: { include_usage: true } }],
    [
      "chat",
      {
        ...story(""),
        prompt: undefined,
        messages: [{ role: "user", content: "Hello!" }],
        logprobs: true,
        top_logprobs: 2,
      },
    ],
  ] as const)("is event for event that of one worker: %s %j", async (kind, body) => {
    const expected = await alone(kind, body, "same");
    const events = await all(eventsOf(deployed.router.url, pathOf[kind], body, "same"));
    const usageApart = (event: string) => {
      const value = parsed(event) as { usage?: { prompt_tokens_details: unknown } | null };
      // What its own cache held is each worker's own.
      if (value.usage) value.usage.prompt_tokens_details = null;
      return value;
    };
    expect(events.map(usageApart)).toEqual(expected.map(usageApart));
  });

  // Last: they take workers away.
  it("has its token 0 while no generation worker runs, and goes on from there when a worker of either role is killed then", async () => {
    const bodies = ["a king", "a frog", "a girl", "a ship"].map(story);
    const expected: string[][] = [];
    for (const [index, body] of bodies.entries()) expected.push(await alone("completion", body, `story-${index}`));
    const [doomedContext] = deployed.context as [DeployedWorker, DeployedWorker];
    const [doomed, survivor] = deployed.generation as [DeployedWorker, DeployedWorker];
    signal([doomed, survivor], "SIGSTOP");
    // Two for each worker.
    const streams = bodies.map((body, index) =>
      eventsOf(deployed.router.url, pathOf.completion, body, `story-${index}`),
    );
    const first = await Promise.all(streams.map(async (events) => (await events.next()).value as string));
    signal([doomedContext, doomed], "SIGKILL");
    signal([survivor], "SIGCONT");
    const rest = await Promise.all(streams.map(all));
    for (const [index, events] of expected.entries()) {
      const got = [first[index] as string, ...(rest[index] as string[])];
      expect(got.map(parsed)).toEqual(events.map(parsed));
    }
  });
});
