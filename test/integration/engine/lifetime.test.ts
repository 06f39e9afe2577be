import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isKvError } from "../../../src/errors.ts";
import type { BlockId } from "../../../src/ids.ts";
import type { NativePoolSpan } from "../../../src/native/plane_binding.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { encodeGguf, randomLlama, writeRandomLlama } from "./gguf_writer.ts";
import { OpenedEngine, sampling, TINY } from "./opened_engine.ts";

const PROMPT = Uint32Array.from({ length: 1_800 }, (_, index) => 3 + (index % 700));
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvt-engine-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The code and the text of what `promise` rejects with. */
const failureOf = async (promise: Promise<unknown>): Promise<string> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return isKvError(error) ? `${error.code}: ${error.message}` : `no KvError: ${error}`;
};

describe("loading", () => {
  const load = (name: string, bytes: Uint8Array) => {
    const file = join(folder, name);
    writeFileSync(file, bytes);
    return failureOf(ReferenceEngine.load(file));
  };

  test("a missing file, a folder and a file of another kind are three clear errors", async () => {
    expect(await failureOf(ReferenceEngine.load(join(folder, "none.gguf")))).toMatch(/MODEL_UNREADABLE.*No such file/);
    expect(await failureOf(ReferenceEngine.load(folder))).toMatch(/MODEL_UNREADABLE.*no regular file/);
    expect(await load("text.gguf", Buffer.from("hello, model"))).toMatch(/MODEL_INVALID.*does not start with "GGUF"/);
    expect(await load("empty.gguf", Buffer.alloc(0))).toMatch(/MODEL_INVALID.*empty/);
  });

  test("a missing, misshapen or unknown tensor is named", async () => {
    const { metadata, tensors } = randomLlama({ seed: 1 });
    const without = tensors.filter(({ name }) => name !== "blk.1.ffn_up.weight");
    expect(await load("1.gguf", encodeGguf(metadata, without))).toMatch(
      /MODEL_INVALID.*`blk.1.ffn_up.weight` is missing/,
    );
    const square = tensors.map((tensor) =>
      tensor.name === "blk.0.attn_k.weight" ? { ...tensor, shape: [64, 128] } : tensor,
    );
    expect(await load("2.gguf", encodeGguf(metadata, square))).toMatch(
      /`blk.0.attn_k.weight` is 128 x 64, expected 64 x 128/,
    );
    const bias = { name: "blk.0.attn_q.bias", shape: [128], type: "F32", data: new Uint8Array(512) } as const;
    expect(await load("3.gguf", encodeGguf(metadata, [...tensors, bias]))).toMatch(/MODEL_UNSUPPORTED.*attn_q.bias/);
    const mixture = { ...metadata, "general.architecture": { text: "mixtral" } };
    expect(await load("4.gguf", encodeGguf(mixture, tensors))).toMatch(/MODEL_UNSUPPORTED.*`mixtral`/);
    const odd = randomLlama({ seed: 1, headDim: 24, heads: 2 });
    expect(await load("5.gguf", encodeGguf(odd.metadata, odd.tensors))).toMatch(/MODEL_UNSUPPORTED.*multiple of 16/);
  });

  test("metadata comes as it is, 64-bit integers past 2^53 as bigint", async () => {
    const { metadata, tensors } = randomLlama({ seed: 2 });
    const file = join(folder, "metadata.gguf");
    const extra = {
      big: { u64: 2n ** 63n + 1n },
      small: { u64: 7n },
      yes: { bool: true },
      words: { texts: ["a", "ü"] },
    };
    writeFileSync(file, encodeGguf({ ...metadata, ...extra }, tensors));
    const engine = await ReferenceEngine.load(file);
    expect(engine.metadata).toMatchObject({ big: 2n ** 63n + 1n, small: 7, yes: true, words: ["a", "ü"] });
    expect(engine.metadata).toBe(engine.metadata);
    await engine.close();
  });
});

describe("calls", () => {
  test("tokens, positions and blocks out of range are INVALID_ARGUMENT", async () => {
    await using opened = await OpenedEngine.open(TINY, { blocks: 4 });
    const { engine } = opened;
    const prefill = (tokens: number[], startPos: number, blockTable: number[]) =>
      failureOf(engine.prefill({ tokens: Uint32Array.from(tokens), startPos, blockTable: blockTable as BlockId[] }));
    expect(await prefill([768], 0, [0])).toMatch(/INVALID_ARGUMENT.*token 768/);
    expect(await prefill([1], 0, [4])).toMatch(/INVALID_ARGUMENT.*block 4/);
    expect(await prefill([1], 32, [0])).toMatch(/INVALID_ARGUMENT.*1 blocks/);
    expect(await prefill([1], -1, [0])).toMatch(/INVALID_ARGUMENT.*startPos/);
    expect(await prefill([1], 2048, [0])).toMatch(/INVALID_ARGUMENT.*position 2048/);
    expect(await prefill([], 0, [0])).toMatch(/INVALID_ARGUMENT.*no tokens/);
    const row = { token: 1, pos: 0, blockTable: [0 as BlockId], sampling: sampling({ temperature: Number.NaN }) };
    expect(await failureOf(engine.decode([row]))).toMatch(/INVALID_ARGUMENT.*temperature/);
    const many = { ...row, sampling: sampling({ logprobs: 1e300 }) };
    expect(await failureOf(engine.decode([many]))).toMatch(/INVALID_ARGUMENT.*logprobs/);
    expect(await engine.decode([])).toEqual([]);
  });

  test("a span that is none, and a pool of other blocks, are refused", async () => {
    await using opened = await OpenedEngine.open(TINY);
    const attach = async (span: unknown, blocks: number) => opened.engine.attach(span as NativePoolSpan, blocks);
    expect(await failureOf(attach({}, 1))).toMatch(/INVALID_ARGUMENT.*span/);
    expect(await failureOf(attach(opened.plane.span, 65))).toMatch(/INVALID_ARGUMENT.*65 blocks/);
    await using other = await OpenedEngine.open(TINY, { tokensPerBlock: 16 });
    expect(await failureOf(attach(other.plane.span, 64))).toMatch(/INVALID_ARGUMENT.*40960 bytes.*81920/);
  });

  test("a signal ends the running call between layers and takes a waiting one from the queue", async () => {
    await using opened = await OpenedEngine.open(TINY);
    const request = { tokens: PROMPT, startPos: 0, blockTable: opened.table(PROMPT.length) };
    const running = new AbortController();
    const waiting = new AbortController();
    const first = failureOf(opened.engine.prefill({ ...request, signal: running.signal }));
    const second = failureOf(opened.engine.prefill({ ...request, signal: waiting.signal }));
    const third = opened.engine.prefill({ ...request, sampling: sampling() });
    waiting.abort();
    setImmediate(() => running.abort());
    expect(await first).toMatch(/^CANCELLED/);
    expect(await second).toMatch(/^CANCELLED/);
    expect((await third)?.token).toBeTypeOf("number");
    expect(await failureOf(opened.engine.prefill({ ...request, signal: AbortSignal.abort() }))).toMatch(/^CANCELLED/);
  });

  test("the JS thread runs on while the engine computes", async () => {
    await using opened = await OpenedEngine.open(TINY);
    let turns = 0;
    let done = false;
    const call = opened.engine
      .prefill({ tokens: PROMPT, startPos: 0, blockTable: opened.table(PROMPT.length) })
      .finally(() => {
        done = true;
      });
    while (!done) {
      turns++;
      await new Promise(setImmediate);
    }
    await call;
    expect(turns).toBeGreaterThan(10);
  });

  test("close fails what runs and waits with CLOSED, and every later call", async () => {
    const opened = await OpenedEngine.open(TINY);
    const request = { tokens: PROMPT, startPos: 0, blockTable: opened.table(PROMPT.length) };
    const calls = [1, 2, 3].map(() => failureOf(opened.engine.prefill(request)));
    await opened.engine.close();
    await opened.engine.close();
    for (const failure of await Promise.all(calls)) expect(failure).toMatch(/^CLOSED/);
    expect(await failureOf(opened.engine.prefill(request))).toMatch(/^CLOSED/);
    await opened.plane.close();
  });

  test("a pool may be closed under an engine: its memory lives while the engine holds it", async () => {
    const opened = await OpenedEngine.open(TINY);
    const call = opened.generate([...PROMPT.subarray(0, 300)], 5);
    await opened.plane.close();
    expect(await call).toHaveLength(5);
    await opened.engine.close();
  });
});

describe("sampling through the addon", () => {
  test("a seed gives the same text whole, chunked and moved, another seed another text", async () => {
    const file = join(folder, "flat.gguf");
    writeRandomLlama(file, { seed: 5 });
    await using opened = await OpenedEngine.open(file);
    const prompt = Array.from({ length: 70 }, (_, index) => (index * 37) % 300);
    const chosen = { temperature: 0.8, topK: 50, topP: 0.95, minP: 0.01, frequencyPenalty: 0.2, logprobs: 2 };
    const whole = await opened.generate(prompt, 30, { sampling: { ...chosen, seed: 11n } });
    const moved = opened.table(100, 10).reverse();
    expect(
      await opened.generate(prompt, 30, { chunk: 9, blockTable: moved, sampling: { ...chosen, seed: 11n } }),
    ).toEqual(whole);
    expect(await opened.generate(prompt, 30, { sampling: { ...chosen, seed: 12n } })).not.toEqual(whole);
    for (const { logprobs } of whole) {
      expect(logprobs?.top).toHaveLength(2);
      expect(logprobs?.logprob).toBeLessThanOrEqual(logprobs?.top[0]?.logprob ?? Number.NaN);
    }
  });
});

/** Bodies of modules: the first runs in a Node of its own, the second in a worker thread of that Node, after it has said that it began. */
const exits: readonly (readonly [name: string, body: string, worker?: string])[] = [
  ["an idle engine lets Node exit", "await open();"],
  [
    "process.exit in the middle of a prefill",
    "const { prefill } = await open(); prefill(); setTimeout(() => process.exit(0), 20);",
  ],
  ["process.exit while a model loads", "native.loadModel(model, options); setImmediate(() => process.exit(0));"],
  [
    "an engine that is garbage",
    "await open(); globalThis.gc(); await new Promise(setImmediate); globalThis.gc(); await new Promise(setImmediate);",
  ],
  [
    "a worker thread that ends in the middle of a prefill",
    "await workerEnded;",
    "const { prefill } = await open(); prefill(); setTimeout(() => process.exit(0), 20);",
  ],
  [
    "a worker thread that throws while it loads",
    "await workerEnded;",
    "native.loadModel(model, options); throw new Error('on purpose');",
  ],
  [
    "a worker thread terminated in the middle of a prefill, and another engine here",
    "const { prefill } = await open(); worker.terminate(); await workerEnded; await prefill();",
    "const { prefill } = await open(); for (;;) await prefill();",
  ],
];

describe.each(exits)("%s", (_, body, worker) => {
  test("ends cleanly", async () => {
    const script = join(folder, "ends.mjs");
    writeFileSync(script, `${setup}\n${worker === undefined ? "" : startWorker}\n${body}\n`);
    writeFileSync(join(folder, "worker.mjs"), `${setup}\n${sayBegan}\n${worker ?? ""}\n`);
    const child = spawn(process.execPath, ["--expose-gc", script], { stdio: ["ignore", "ignore", "pipe"] });
    let complaints = "";
    child.stderr.on("data", (text: Buffer) => {
      complaints += text.toString();
    });
    const watchdog = setTimeout(() => child.kill("SIGKILL"), 30_000);
    const [code, signal] = await once(child, "exit");
    clearTimeout(watchdog);
    expect({ code, signal, complaints }).toEqual({ code: 0, signal: null, complaints: "" });
  });
});

const root = fileURLToPath(new URL("../../..", import.meta.url));
const setup = `import { createRequire } from "node:module";
const require = createRequire(${JSON.stringify(join(root, "package.json"))});
const native = require(require("node-gyp-build").resolve(${JSON.stringify(root)}));
const { packedLayout } = await import(${JSON.stringify(new URL("../dataplane/packed_layout.mjs", import.meta.url).href)});
const model = ${JSON.stringify(join(root, TINY))};
const options = { threads: 2, weights: "auto", kv: "auto", tokensPerBlock: 32 };
let calls = 0;
const open = async () => {
  const engine = await native.loadModel(model, options);
  const layout = packedLayout({ layers: 5, planes: 2, heads: 2, tokensPerBlock: 32, headBytes: 128 });
  const plane = await native.openDataPlane({ layout, blocks: 64, epoch: "00000000000000aa", check: false }, () => {});
  engine.attachPools([{ span: plane.span, places: layout.groups[0] }], 64);
  const table = Uint32Array.from({ length: 64 }, (_, index) => index);
  return { engine, prefill: () => engine.prefill(++calls, new Uint32Array(1800).fill(9), 0, table, null, null, 1) };
};`;
const startWorker = `const { Worker } = await import("node:worker_threads");
const worker = new Worker(new URL("worker.mjs", import.meta.url));
worker.on("error", (error) => { if (error.message !== "on purpose") throw error; });
const workerEnded = new Promise((resolve) => worker.on("exit", resolve));
await new Promise((resolve) => worker.on("message", resolve));`;
const sayBegan = `const { parentPort } = await import("node:worker_threads");
parentPort.postMessage("began");`;
