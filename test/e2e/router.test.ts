import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SseParser } from "../../src/openai/index.ts";
import { eventually } from "../integration/waits.ts";
import { freedOf } from "../integration/worker/inspect.ts";
import { LeakWatch, POOL_TOKENS } from "../integration/worker/no_leak.ts";
import { type Deployed, type DeployedWorker, deploy, type Golden, goldens } from "./deployed.ts";

let deployed: Deployed;
let leaks: LeakWatch;
beforeAll(async () => {
  deployed = await deploy({ context: 2, generation: 2, poolTokens: POOL_TOKENS });
  leaks = await LeakWatch.begin(deployed.context, deployed.generation);
  // It may have to compile src/ first.
}, 180_000);
afterAll(async () => {
  await deployed?.[Symbol.asyncDispose]();
});

const pathOf = ({ kind }: Golden): string => (kind === "chat" ? "/v1/chat/completions" : "/v1/completions");
const bodyOf = (golden: Golden, fields: object = {}) => ({
  model: "tiny",
  ...(golden.kind === "chat" ? { messages: golden.messages } : { prompt: golden.text }),
  max_tokens: 48,
  temperature: 0,
  ...fields,
});

interface Chunk {
  readonly choices: readonly { readonly text?: string; readonly delta?: { readonly content?: string } }[];
  readonly error?: { readonly code: string };
}
/** Text of an answer, whole or streamed; undefined when a stream ended with an error or without its end. */
async function textOf(response: Response, stream: boolean): Promise<string | undefined> {
  if (!stream) {
    const { choices } = (await response.json()) as { choices: { text?: string; message?: { content: string } }[] };
    return choices[0]?.text ?? choices[0]?.message?.content;
  }
  const parser = new SseParser();
  const data = parser.push(new Uint8Array(await response.arrayBuffer()));
  if (data.at(-1) !== "[DONE]") return undefined;
  return data
    .slice(0, -1)
    .map((text) => JSON.parse(text) as Chunk)
    .map(({ choices }) => choices[0]?.text ?? choices[0]?.delta?.content ?? "")
    .join("");
}

const sum = (counts: readonly number[]): number => counts.reduce((total, count) => total + count, 0);
const workers = (): readonly DeployedWorker[] => [...deployed.context, ...deployed.generation];

describe("a golden answer through the router", () => {
  it.each(goldens.map((golden) => [golden.name, golden] as const))(
    "is right, whole and streamed: %s",
    async (_name, golden) => {
      for (const stream of [false, true]) {
        const response = await deployed.post(pathOf(golden), bodyOf(golden, { stream }));
        expect(response.status).toBe(200);
        expect(await textOf(response, stream)).toBe(golden.output_text);
      }
    },
  );

  it("was computed by two processes: each worker has moved KV or received it", async () => {
    for (const worker of deployed.context) {
      const stats = (await worker.stats()) as unknown as { sends: { completed: number }; bytes_received: number };
      expect(stats.sends.completed).toBeGreaterThan(0);
    }
    for (const worker of deployed.generation) {
      const stats = (await worker.stats()) as unknown as { bytes_received: number };
      expect(stats.bytes_received).toBeGreaterThan(0);
    }
  });

  it("of one token comes from the context worker alone, whole and streamed", async () => {
    const golden = goldens.find(({ kind }) => kind === "completion") as Golden;
    const whole = await deployed.post(pathOf(golden), bodyOf(golden, { max_tokens: 1 }));
    const text = await textOf(whole, false);
    expect(golden.output_text.startsWith(text as string)).toBe(true);
    expect(text).not.toBe("");
    const streamed = await deployed.post(pathOf(golden), bodyOf(golden, { max_tokens: 1, stream: true }));
    expect(await textOf(streamed, true)).toBe(text);
    const line = deployed.log.filter(({ event }) => event === "request").at(-1);
    expect(line).toMatchObject({ status: 200, contextTries: 1 });
    expect(line).not.toHaveProperty("generation");
  });

  it("with seed, temperature and logprobs is the same every time", async () => {
    const golden = goldens.find(({ kind }) => kind === "completion") as Golden;
    const ask = async () => {
      const response = await deployed.post(
        pathOf(golden),
        bodyOf(golden, { temperature: 1, seed: 7, logprobs: 2, max_tokens: 12 }),
      );
      const { choices } = (await response.json()) as { choices: { text: string; logprobs: object }[] };
      return choices[0];
    };
    const [one, two] = [await ask(), await ask()];
    expect(one?.logprobs).toBeTruthy();
    expect(one).toEqual(two);
  });
});

describe("requests that go wrong", () => {
  it("200, 16 at once, a third cancelled at random moments: the completed are right, nothing leaks", async () => {
    const small = goldens.filter(({ ids }) => ids.length < 200);
    let left = 200;
    const outcomes = { right: 0, cancelled: 0 };
    const one = async (index: number): Promise<void> => {
      const golden = small[index % small.length] as Golden;
      const stream = index % 2 === 0;
      const leave = new AbortController();
      const timer = index % 3 === 0 ? setTimeout(() => leave.abort(), Math.random() * 300) : undefined;
      try {
        const response = await deployed.post(pathOf(golden), bodyOf(golden, { stream }), { signal: leave.signal });
        expect(response.status, await response.clone().text()).toBe(200);
        expect(await textOf(response, stream)).toBe(golden.output_text);
        outcomes.right += 1;
      } catch (error) {
        if (!leave.signal.aborted) throw error;
        outcomes.cancelled += 1;
      } finally {
        clearTimeout(timer);
      }
    };
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        while (left > 0) {
          left -= 1;
          await one(left);
        }
      }),
    );
    expect(outcomes.right + outcomes.cancelled).toBe(200);
    expect(outcomes.right).toBeGreaterThan(130);
    await leaks.expectNone(workers(), await deployed.startFresh());
  });

  it("a client that leaves while the generation worker hangs: the context blocks are free within 100 ms", async () => {
    const golden = goldens[0] as Golden;
    const sending = async (): Promise<number> => {
      return sum(await Promise.all(deployed.context.map(async ({ stats }) => (await stats()).sends.open)));
    };
    const freed = async () => {
      const counts = await Promise.all(deployed.context.map(freedOf));
      return { all: sum(counts.map(({ all }) => all)), inTime: sum(counts.map(({ inTime }) => inTime)) };
    };
    for (const { process } of deployed.generation) process.child.kill("SIGSTOP");
    const before = await freed();
    try {
      for (let i = 0; i < 5; i++) {
        const leave = new AbortController();
        const answer = deployed.post(pathOf(golden), bodyOf(golden), { signal: leave.signal });
        await eventually(sending, (count) => count === 1);
        const leftAt = performance.now();
        leave.abort();
        await expect(answer).rejects.toThrow();
        await eventually(sending, (count) => count === 0);
        // From here, with whatever else the machine does; a timer, of the offer or its lease, would take ten seconds at least.
        expect(performance.now() - leftAt).toBeLessThan(5_000);
      }
    } finally {
      for (const { process } of deployed.generation) process.child.kill("SIGCONT");
    }
    const after = await freed();
    expect([after.all - before.all, after.inTime - before.inTime]).toEqual([5, 5]);
    await eventually(
      () => fetch(`${deployed.router.url}/health`),
      ({ status }) => status === 200,
    );
    await leaks.expectNone(workers(), await deployed.startFresh());
  });

  it("a legal prompt of 10 MB is 413 by its tokens, and the workers live", async () => {
    const response = await deployed.post("/v1/completions", {
      model: "tiny",
      prompt: "one two three four ".repeat(550_000),
      max_tokens: 4,
    });
    expect(response.status).toBe(413);
    const { error } = (await response.json()) as { error: Record<string, unknown> };
    expect(error).toMatchObject({ code: "prompt_too_long", hop: "context" });
    const golden = goldens[0] as Golden;
    expect(await textOf(await deployed.post(pathOf(golden), bodyOf(golden)), false)).toBe(golden.output_text);
  });

  it("a body of 65 MB is 413 by its size", async () => {
    const response = await deployed.post("/v1/completions", {}, { body: Buffer.alloc(65 << 20, " ") });
    expect(response.status).toBe(413);
  });

  it("what a worker does not support is 400 with the worker's words", async () => {
    const response = await deployed.post("/v1/completions", { model: "tiny", prompt: "a", suffix: "b" });
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as { error: Record<string, unknown> };
    expect(error).toMatchObject({ code: "unsupported_parameter", param: "suffix", hop: "context" });
  });
});

describe("killed workers", () => {
  /** Keeps 8 requests in flight, kills `victim` in the middle, and gives what became of all 40. */
  async function storm(victim: DeployedWorker): Promise<{ right: number; failed: number[]; broken: number }> {
    const golden = goldens.find(({ name }) => name === "raw-lily") as Golden;
    const outcome = { right: 0, failed: [] as number[], broken: 0 };
    let left = 40;
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        while (left > 0) {
          left -= 1;
          if (left === 25) victim.process.child.kill("SIGKILL");
          const stream = left % 2 === 0;
          const response = await deployed.post(pathOf(golden), bodyOf(golden, { stream }));
          if (response.status !== 200) {
            outcome.failed.push(response.status);
            await response.text();
            continue;
          }
          const text = await textOf(response, stream);
          if (text === undefined) outcome.broken += 1;
          else {
            expect(text).toBe(golden.output_text);
            outcome.right += 1;
          }
        }
      }),
    );
    return outcome;
  }

  it("a context worker killed with requests on it is replaced by the other one", async () => {
    const { right, failed } = await storm(deployed.context[0] as DeployedWorker);
    expect(failed).toEqual([]);
    expect(right).toBeGreaterThanOrEqual(32);
    await leaks.expectNone(workers().slice(1), await deployed.startFresh());
  });

  it("a generation worker killed with requests on it is replaced, and only streams that had begun break", async () => {
    const { right, failed, broken } = await storm(deployed.generation[0] as DeployedWorker);
    expect(failed).toEqual([]);
    expect(broken).toBeLessThanOrEqual(8);
    expect(right + broken).toBe(40);
    const survivors = [deployed.context[1], deployed.generation[1]] as DeployedWorker[];
    await leaks.expectNone(survivors, await deployed.startFresh());
  });

  it("the last generation worker killed makes it 503", async () => {
    (deployed.generation[1] as DeployedWorker).process.child.kill("SIGKILL");
    await eventually(
      () => fetch(`${deployed.router.url}/health`),
      ({ status }) => status === 503,
    );
    const response = await deployed.post("/v1/completions", { model: "tiny", prompt: "a" });
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("1");
  });
});
