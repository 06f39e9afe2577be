import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Deployed, deploy } from "../e2e/deployed.ts";
import { until } from "../integration/waits.ts";
import { ask } from "../integration/worker/client.ts";
import { shimNixl } from "./nixl_shim.ts";
import { bringNixl } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";
const folder = mkdtempSync(join(tmpdir(), "kvt-wedged-"));
const fifo = join(folder, "wedge");
const body = { prompt: "KV cache", max_tokens: 4, temperature: 0, ignore_eos: true };

afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Health {
  readonly status: string;
  readonly degraded?: string;
  readonly reasons?: readonly string[];
}

async function healthOf(url: string): Promise<{ readonly code: number; readonly health: Health }> {
  const response = await fetch(`${url}/health`);
  return { code: response.status, health: (await response.json()) as Health };
}

async function gauge(url: string, series: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split("\n").find((one) => one.startsWith(`${series} `));
  return Number(line?.slice(series.length));
}

describe.skipIf(library === "")(`a generation worker whose NIXL wedges${without}`, () => {
  it("serves on with another agent twice; after the third it says so, drains, and ends for its supervisor", async () => {
    const shim = shimNixl(library, join(folder, "shim"));
    const env = { KVT_NIXL_LIBRARY: shim, KVT_PATH: "nixl_staged", KVT_TEST_WEDGE: fifo };
    // What a drain waits for: as many tokens as fit.
    const long = { prompt: "It", max_tokens: 1_900, temperature: 0, ignore_eos: true };
    await using deployed: Deployed = await deploy({ context: 1, generation: 1, env });
    const { router, generation } = deployed;
    const [worker] = generation;
    if (worker === undefined) throw new Error("there is no worker");
    const answered = async () => await ask(router.url, "completion", body, { id: randomUUID() });
    const { text } = await answered();
    expect(await healthOf(worker.url)).toEqual({ code: 200, health: { status: "ok" } });

    /** The next read never ends. @returns when whoever asked has been answered or refused */
    const wedge = async (): Promise<{ readonly asked: Promise<unknown> }> => {
      execFileSync("mkfifo", [fifo]);
      const asked = answered().catch(() => {});
      await until("a post stands still", async () => !existsSync(fifo));
      return { asked };
    };
    for (const count of [1, 2]) {
      await (await wedge()).asked;
      expect((await answered()).text).toBe(text);
      const { code, health } = await healthOf(worker.url);
      expect([code, health.status]).toEqual([200, "ok"]);
      expect(health.degraded?.match(/NIXL agent \S+ does not come back: 0 bytes of blocks/g)).toHaveLength(count);
      expect(await gauge(worker.url, 'kvt_worker_nixl_agents{state="wedged"}')).toBe(count);
      expect(await gauge(worker.url, 'kvt_worker_nixl_agents{state="replaced"}')).toBe(count);
      expect(await gauge(worker.url, 'kvt_worker_nixl_quarantined_bytes{memory="blocks",agents="wedged"}')).toBe(0);
      const slots = 'kvt_worker_nixl_quarantined_bytes{memory="slots",agents="wedged"}';
      expect(await gauge(worker.url, slots)).toBeGreaterThan(0);
      const { blocks } = await worker.stats();
      expect(blocks.pinned).toBe(0);
    }

    const { asked } = await wedge();
    const running = Array.from({ length: 4 }, () => ask(worker.url, "completion", long));
    await worker.process.said("draining, to be started anew");
    const { code, health } = await healthOf(worker.url);
    expect(code).toBe(503);
    expect(health.reasons?.join("\n")).toContain("no NIXL agent is left");
    for (const reply of await Promise.all(running)) expect(reply.outputTokens).toBe(1_900);
    await asked;
    expect(await worker.process.ended).toBe(1);
  }, 240_000);
});
