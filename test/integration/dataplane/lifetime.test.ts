import { fork } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { loadNative } from "../../../src/native/loader.ts";
import { nativeLayout, SocketDirectory, script } from "./peer.ts";

/** From the moment it is asked to, nothing in flight may hold up the end for longer. */
const END_MS_MAX = 1_000;
const states = ["opening", "idle", "reaching", "reached", "moving", "leased", "flooded", "closing", "closed"] as const;

/** How a process that was brought into `state` ended, and how long after it said that it is ready. */
async function endOfProcess(state: string, end: string) {
  using directory = new SocketDirectory();
  const child = fork(script("lifetime.mjs"), [state, end, directory.path], { execArgv: [], stdio: "pipe" });
  let errors = "";
  child.stderr?.on("data", (text) => {
    errors += text;
  });
  await once(child, "message");
  const since = performance.now();
  const limit = setTimeout(() => child.kill("SIGKILL"), 10_000);
  const [code, signal] = await once(child, "exit");
  clearTimeout(limit);
  const ms = performance.now() - since;
  return { code, signal, ms, errors, left: readdirSync(directory.path) };
}

/** The same for a worker thread of this process. */
async function endOfThread(state: string, end: string, terminate: boolean) {
  using directory = new SocketDirectory();
  const worker = new Worker(script("lifetime.mjs"), { workerData: [state, end, directory.path], execArgv: [] });
  let error: unknown;
  worker.on("error", (thrown) => {
    error = thrown;
  });
  const exited = new Promise((resolve) => worker.on("exit", resolve));
  await new Promise((resolve) => worker.on("message", resolve));
  const since = performance.now();
  if (terminate) await worker.terminate();
  await exited;
  return { ms: performance.now() - since, error };
}

describe("the process ends within a second and without a crash", { retry: 2 }, () => {
  for (const state of states) {
    // An opening that was asked for holds the process, like any promise of work.
    it.skipIf(state === "opening")(`by itself, ${state} and without a listener`, async () => {
      const ended = await endOfProcess(state, "return");
      expect(ended).toMatchObject({ code: 0, signal: null, errors: "" });
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
    it(`by process.exit while ${state}`, async () => {
      const ended = await endOfProcess(state, "exit");
      expect(ended).toMatchObject({ code: 7, signal: null, errors: "", left: [] });
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
    it(`by an uncaught exception while ${state}`, async () => {
      const ended = await endOfProcess(state, "throw");
      expect(ended).toMatchObject({ code: 1, signal: null });
      expect(ended.errors).toContain("thrown on purpose");
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
    it.skipIf(state === "opening")(`by close() while ${state}, although it held a reference`, async () => {
      const ended = await endOfProcess(state, "close");
      expect(ended).toMatchObject({ code: 0, signal: null, errors: "" });
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
  }
});

describe("a worker thread ends within a second and the process goes on", { retry: 2 }, () => {
  for (const state of states) {
    it(`by an exception while ${state}`, async () => {
      const ended = await endOfThread(state, "throw", false);
      expect(String(ended.error)).toContain("thrown on purpose");
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
    it(`by terminate() while ${state}`, async () => {
      const ended = await endOfThread(state, "wait", true);
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
    it(`by process.exit while ${state}`, async () => {
      const ended = await endOfThread(state, "exit", false);
      expect(ended.ms).toBeLessThan(END_MS_MAX);
    });
  }

  it("and the addon still works in the main thread", async () => {
    const plane = await loadNative().openDataPlane(
      { layout: nativeLayout, blocks: 2, epoch: "00000000000000aa", check: false },
      () => {},
    );
    expect(plane.stats().jobsPosted).toBe(0);
    await plane.close();
  });
});
