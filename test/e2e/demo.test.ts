import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { ask, waitUntilHealthy } from "../../src/cli/ask.ts";
import { freePorts } from "../../src/cli/ports.ts";
import { buildKvt, type KvtProcess, startKvt } from "../integration/cli/kvt_process.ts";

beforeAll(buildKvt, 120_000);

// A demo that is killed can't remove its folder: all of them lie in one that goes at the end.
const folder = mkdtempSync(join(tmpdir(), "kvt-e2e-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let running: KvtProcess | undefined;
afterEach(async () => {
  running?.child.kill("SIGKILL");
  await running?.ended;
});

function demo(argv: readonly string[] = [], env: Readonly<Record<string, string>> = {}): KvtProcess {
  running = startKvt(["demo", ...argv], { TMPDIR: folder, ...env });
  return running;
}

/** `--port` takes the next three too: whoever runs beside this test may hold one of them. */
async function firstOfFour(): Promise<number> {
  for (;;) {
    const [port = 0] = await freePorts(1);
    const found = await freePorts(4, [port, port + 1, port + 2, port + 3]).catch(() => null);
    if (found !== null) return port;
  }
}

const pidsIn = (output: string): number[] => [...output.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid));

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

// Seven processes start in the first of these, on whatever machine the tests run.
describe("kvt demo", { timeout: 180_000 }, () => {
  it("answers from the moved cache, shows the transfer, proves it twice, and leaves no process", async () => {
    const started = performance.now();
    const { ended, output } = demo();
    expect([await ended, output()]).toEqual([0, expect.any(String)]);
    expect(performance.now() - started).toBeLessThan(60_000);
    const text = output();
    const [, key = "none"] = /The pass key is (\d{5})\. Remember it\./.exec(text) ?? [];
    expect(text).toMatch(new RegExp(`Answer +The pass key is ${key}\\.`));
    expect(text).toMatch(/prefill +[\d.]+ ms .* 1,\d{3} tokens by context [12] \(pid \d+\)/);
    expect(text).toMatch(
      /transfer +[\d.]+ ms .* \d+ blocks, [\d.]+ MB moved in \d+ µs: [\d.]+ GB\/s over shared_memory/,
    );
    expect(text).toMatch(/decode +[\d.]+ ms .* \d+ tokens by generation \(pid \d+\)/);
    expect(text).toContain("gives the same answer");
    const [, empty = key] = /with an empty cache in place of the moved one it would be: (.*)/.exec(text) ?? [];
    expect(empty).not.toContain(key);
    expect(text).toContain("All 7 processes have ended.");
    expect(text).not.toContain("\x1b[");
    expect(pidsIn(text).length).toBeGreaterThanOrEqual(4);
    expect(pidsIn(text).filter(isAlive)).toEqual([]);
  });

  it("that is interrupted ends all its processes", async () => {
    const { child, ended, output, said } = demo();
    await said("processes ready in");
    child.kill("SIGINT");
    expect(await ended).toBe(1);
    expect(output()).toContain("processes have ended.");
    expect(pidsIn(output()).filter(isAlive)).toEqual([]);
  });

  it("that is killed leaves no process either", async () => {
    const { child, ended, output, said } = demo();
    await said("processes ready in");
    const pids = pidsIn(output());
    child.kill("SIGKILL");
    await ended;
    await vi.waitUntil(() => !pids.some(isAlive), { timeout: 20_000, interval: 50 });
  });

  it("that fails says why, with the log of the process that failed, and leaves no process", async () => {
    const { ended, output } = demo([], { KVT_PATH: "cuda_peer" });
    expect(await ended).toBe(1);
    expect(output()).toContain("ended while it was starting (2)");
    expect(output()).toContain("the path cuda_peer is not built yet");
    expect(output()).toContain("All 4 processes have ended.");
  });

  it("with --keep stays up at the ports given, prints commands, and ends with SIGTERM", async () => {
    const port = await firstOfFour();
    const { child, ended, output, said } = demo(["--keep", "--port", String(port)]);
    await said("stays up");
    await said("/cluster_info");
    expect(output()).toContain(`curl http://localhost:${port}/v1/completions`);
    const server = `http://localhost:${port}`;
    expect(await waitUntilHealthy(server, 5_000, 50)).toBe(true);
    const body = {
      model: "tiny",
      prompt: "The pass key is 12345. Remember it. The pass key is",
      max_tokens: 6,
      temperature: 0,
    };
    expect((await ask({ server, endpoint: "completions", body })).text).toContain("12345");
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
    expect(pidsIn(output()).filter(isAlive)).toEqual([]);
  });
});
