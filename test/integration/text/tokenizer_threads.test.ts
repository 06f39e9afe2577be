import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import type * as Text from "../../../src/worker/text/index.ts";
import { metadata } from "../../unit/text/tiny_model.ts";

// The threads exist only in the built package: Node 20 runs no TypeScript in a worker thread.
const built = new URL("../../../dist/worker/text/index.js", import.meta.url);
const run = promisify(execFile);
let text: typeof Text;

beforeAll(async () => {
  if (!existsSync(built)) throw new Error("dist/ is missing: npm run build:ts");
  text = (await import(built.href)) as typeof Text;
});

const story = "Once upon a time, there was a little girl named Lily. ".repeat(400);

test("a long text tokenised in a thread gives the ids of the calling thread, many at once too", async () => {
  const tokenizer = text.Tokenizer.fromMetadata(metadata);
  const expected = tokenizer.encode(story, { specials: true });
  const answers = await Promise.all(Array.from({ length: 8 }, () => tokenizer.encodeAsync(story, { specials: true })));
  for (const ids of answers) expect(ids).toEqual(expected);
});

test("the event loop stays free meanwhile", async () => {
  const tokenizer = text.Tokenizer.fromMetadata(metadata);
  await tokenizer.encodeAsync(story, { specials: true });
  const long = story.repeat(40);
  let turns = 0;
  let running = true;
  const turn = (): void => {
    turns++;
    if (running) setImmediate(turn);
  };
  setImmediate(turn);
  const ids = await tokenizer.encodeAsync(long, { specials: true });
  running = false;
  expect(ids.length).toBeGreaterThan(100_000);
  expect(turns).toBeGreaterThan(100);
});

test("a refusal in the thread is the same typed error as outside", async () => {
  const tokenizer = text.Tokenizer.fromMetadata(metadata);
  await expect(
    tokenizer.encodeAsync("1".repeat(9000), { specials: true, limit: { tokens: 2048, name: "max_num_tokens" } }),
  ).rejects.toThrow(expect.objectContaining({ code: "PROMPT_TOO_LONG", status: 413, details: expect.anything() }));
});

test("more waiting jobs than the queue holds are refused with 429, and the others are answered", async () => {
  const tokenizer = text.Tokenizer.fromMetadata(metadata);
  const jobs = Array.from({ length: 80 }, () => tokenizer.encodeAsync(story, { specials: true }));
  const results = await Promise.allSettled(jobs);
  const refused = results.filter((result) => result.status === "rejected");
  expect(refused.length).toBeGreaterThan(0);
  expect(refused.length).toBeLessThanOrEqual(16);
  for (const { reason } of refused) expect(reason).toMatchObject({ code: "TOKENIZER_BUSY", status: 429 });
});

test("an aborted job ends with the signal's reason, waiting or running, and the pool goes on", async () => {
  const tokenizer = text.Tokenizer.fromMetadata(metadata);
  const abort = new AbortController();
  const jobs = Array.from({ length: 6 }, () => tokenizer.encodeAsync(story, { specials: true }, abort.signal));
  const reason = new Error("the client left");
  abort.abort(reason);
  for (const result of await Promise.allSettled(jobs)) expect(result).toEqual({ status: "rejected", reason });
  await expect(tokenizer.encodeAsync(story, { specials: true }, abort.signal)).rejects.toBe(reason);
  await expect(tokenizer.encodeAsync(story, { specials: true })).resolves.toHaveLength(
    tokenizer.encode(story, { specials: true }).length,
  );
});

test("a process whose pool is idle ends by itself, one with work in flight finishes it first", async () => {
  const script = `
    import { readFileSync } from "node:fs";
    import { Tokenizer } from ${JSON.stringify(built.href)};
    const tokenizer = new Tokenizer(JSON.parse(readFileSync(0, "utf8")));
    await tokenizer.encodeAsync("word ".repeat(2000), { specials: true });
    void tokenizer.encodeAsync("word ".repeat(20000), { specials: true }).then((ids) => console.log(ids.length));
  `;
  const child = run(process.execPath, ["--input-type=module", "-e", script], { timeout: 30_000 });
  const { vocabulary } = text.Tokenizer.fromMetadata(metadata);
  child.child.stdin?.end(JSON.stringify(vocabulary));
  const { stdout } = await child;
  const ids = text.Tokenizer.fromMetadata(metadata).encode("word ".repeat(20000), { specials: true });
  expect(Number(stdout)).toBe(ids.length);
});
