import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TransceiverHealth } from "../../src/transceiver/api.ts";
import { BLOCKS, BYTES_PER_TOKEN, layout, type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { until } from "../integration/waits.ts";
import { shimNixl } from "./nixl_shim.ts";
import { bringNixl } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";
const BLOCK_BYTES = BYTES_PER_TOKEN * layout.tokensPerBlock;
const folder = mkdtempSync(join(tmpdir(), "kvt-wedge-"));
const fifo = join(folder, "wedge");
const variables = ["KVT_NIXL_LIBRARY", "KVT_PATH", "KVT_TEST_WEDGE"] as const;
const before = variables.map((name) => process.env[name]);

afterAll(() => {
  for (const [place, name] of variables.entries()) {
    const value = before[place];
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  rmSync(folder, { recursive: true, force: true });
});

describe.skipIf(library === "").each([
  ["nixl_direct", BLOCK_BYTES],
  // Its reads end in slots.
  ["nixl_staged", 0],
])(`a post of %s that does not come back${without}`, (path, keptBytes) => {
  const peers = new Peers();
  let sender: Peer;
  let next = 1;
  /** From each wedge to the end of the next request. */
  const servedMs: number[] = [];
  beforeAll(async () => {
    const shim = shimNixl(library, join(folder, path));
    Object.assign(process.env, { KVT_NIXL_LIBRARY: shim, KVT_PATH: path, KVT_TEST_WEDGE: fifo });
    sender = await peers.open();
  }, 60_000);
  afterAll(() => peers[Symbol.asyncDispose]());

  async function begin(receiver: Peer, tokens: number): Promise<number> {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens });
    await receiver.receive({ id, state, tokens });
    return id;
  }

  async function moved(receiver: Peer): Promise<void> {
    const id = await begin(receiver, 96);
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens: 96, path } });
  }

  /** The next read of the receiver never ends. @returns lets it end after all */
  async function wedge(receiver: Peer, tokens: number): Promise<() => void> {
    execFileSync("mkfifo", [fifo]);
    const id = await begin(receiver, tokens);
    const taken = `${fifo}.${receiver.pid}`;
    await until("a post stands still", async () => existsSync(taken));
    const started = performance.now();
    expect(await receiver.received(id)).toMatchObject({ code: "COPY_FAILED" });
    await moved(receiver);
    servedMs.push(performance.now() - started);
    expect(servedMs.at(-1)).toBeLessThan(4_000);
    return () => {
      openSync(taken, "w");
      rmSync(taken);
    };
  }

  const health = (peer: Peer): Promise<TransceiverHealth> => peer.call("health");

  it("costs its transfer, and its blocks or slots until it does; another agent takes the next, and health names the first", async () => {
    const receiver = await peers.open();
    await moved(receiver);
    expect(await health(receiver)).toEqual({ status: "ok", reasons: [] });
    const letGo = await wedge(receiver, 160);
    const { nixl, blocks } = await receiver.stats();
    expect(nixl).toMatchObject({ wedged: [{ bytes: 5 * keptBytes }], replaced: 1, exhausted: false });
    expect(blocks.quarantined * BLOCK_BYTES).toBe(nixl?.wedged[0]?.bytes);
    const slotBytes = nixl?.wedged[0]?.slotBytes;
    if (path === "nixl_staged") expect(slotBytes).toBeGreaterThan(0);
    else expect(slotBytes).toBe(0);
    const degraded = await health(receiver);
    expect(degraded.status).toBe("degraded");
    expect(degraded.reasons[0]).toContain(`NIXL agent ${nixl?.wedged[0]?.agent} does not come back`);
    expect(degraded.reasons[0]).toContain(
      `${5 * keptBytes} bytes of blocks and ${slotBytes} bytes of staging slots stay in quarantine`,
    );
    // The receiver's own pool is read by way of its new agent.
    const id = next++;
    const { state } = await receiver.send({ request: id, tokens: 64 });
    await sender.receive({ id, state, tokens: 64 });
    expect(await sender.received(id)).toMatchObject({ wrong: 0, report: { path } });

    letGo();
    await until("the agent has let its blocks go", async () => {
      const { nixl: now, blocks: free } = await receiver.stats();
      return now?.wedged.length === 0 && free.quarantined === 0 && free.free === BLOCKS;
    });
    expect(await health(receiver)).toEqual({ status: "ok", reasons: [] });
    await moved(receiver);
    await receiver.call("close");
    await receiver.kill();
  }, 60_000);

  it("for the third time leaves no agent: health is unhealthy, and a close still ends", async () => {
    const receiver = await peers.open();
    await moved(receiver);
    await wedge(receiver, 32);
    await wedge(receiver, 64);
    // A busy machine makes each longer, an agent that is found too late all of them.
    expect(Math.min(...servedMs)).toBeLessThan(2_000);
    expect(await health(receiver)).toMatchObject({ status: "degraded" });
    execFileSync("mkfifo", [fifo]);
    const id = await begin(receiver, 96);
    expect(await receiver.received(id)).toMatchObject({ code: "COPY_FAILED" });
    const { status, reasons } = await health(receiver);
    expect(status).toBe("unhealthy");
    expect(reasons.join("\n")).toContain("no NIXL agent is left");
    const { nixl, blocks } = await receiver.stats();
    expect(nixl).toMatchObject({ replaced: 2, exhausted: true });
    const bytes = nixl?.wedged.map((agent) => agent.bytes) ?? [];
    expect(bytes).toEqual([1, 2, 3].map((count) => count * keptBytes));
    expect(blocks.quarantined * BLOCK_BYTES).toBe(6 * keptBytes);
    const refused = await begin(receiver, 32);
    expect(await receiver.received(refused)).toHaveProperty("code");
    const closed = performance.now();
    await receiver.call("close");
    expect(performance.now() - closed).toBeLessThan(15_000);
    await receiver.kill();
  }, 90_000);
});
