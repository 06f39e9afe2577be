import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { buildIfStale, layout } from "./peer_process.ts";

const BLOCKS = 16;
const END_LIMIT_MS = 1_000;

describe("a transceiver in a worker thread", () => {
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-threads-"));
  const options = { layout, pool: { memory: "host", blocks: BLOCKS }, socketDir } as const;
  beforeAll(buildIfStale, 120_000);
  afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

  it.each([
    ["terminated", (thread: Worker) => void thread.terminate()],
    ["ended by an exception", (thread: Worker) => thread.postMessage("throw")],
  ])("%s with an offer open ends at once, and the process goes on", async (_how, end) => {
    await using kv = await KvTransceiver.open(options);
    const thread = new Worker(new URL("thread_entry.mjs", import.meta.url), { workerData: options });
    // Not events.once: it would reject with the thread's error.
    const exited = new Promise((resolve) => thread.once("exit", resolve));
    thread.on("error", () => {});
    const [state] = (await once(thread, "message")) as [string];
    const started = performance.now();
    end(thread);
    await exited;
    expect(performance.now() - started).toBeLessThan(END_LIMIT_MS);
    const blocks = kv.pool.allocate(5);
    await expect(kv.receive({ state, blocks }).done).rejects.toMatchObject({ code: "PEER_UNREACHABLE" });
    blocks.release();
    expect(kv.pool.free).toBe(BLOCKS);
  });

  it("moves its KV to a transceiver of the main thread", async () => {
    await using kv = await KvTransceiver.open(options);
    const thread = new Worker(new URL("thread_entry.mjs", import.meta.url), { workerData: options });
    const [state] = (await once(thread, "message")) as [string];
    const blocks = kv.pool.allocate(5);
    expect(await kv.receive({ state, blocks }).done).toMatchObject({ path: "shared_memory", tokens: 150 });
    blocks.release();
    await thread.terminate();
  });
});
