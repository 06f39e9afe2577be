import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { BLOCK_MS, type Peer, Peers, type Resources } from "../integration/transceiver/peer_process.ts";
import { until } from "../integration/waits.ts";
import { nixlCases, setEnvironment } from "./nixl_wheel.ts";

const TOKENS = 40_000;
const layout = { layers: 2, kvHeads: 8, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
const BYTES_PER_TOKEN = 2 * 2 * 8 * 16 * 4;
const BLOCKS = TOKENS / layout.tokensPerBlock;
/** Two slots a direction: 1 MiB a process. */
const SLOT_TOKENS = (256 << 10) / BYTES_PER_TOKEN;
const IDLE_MS = 500;

const moved = ({ rssAnonKib }: Resources, before: Resources) => rssAnonKib - before.rssAnonKib;

describe.each(nixlCases())("80 MiB over $name", ({ env, missing }) => {
  const path = env.KVT_PATH;
  const peers = new Peers();
  let restore: (() => void) | undefined;
  let sender: Peer;
  let receiver: Peer;
  let next = 1;
  beforeAll(async () => {
    if (missing !== undefined) return;
    restore = setEnvironment(env);
    const options = {
      layout,
      pool: { memory: "host", blocks: BLOCKS },
      config: { max_tokens_in_buffer: SLOT_TOKENS },
      verify: "off",
    } as const;
    [sender, receiver] = await Promise.all([peers.open(options), peers.open(options)]);
    // Connections, and what the first use of anything needs.
    await move(64);
  }, 60_000);
  afterAll(async () => {
    restore?.();
    await peers[Symbol.asyncDispose]();
  });
  beforeEach(({ skip }) => {
    if (missing !== undefined) skip(missing);
  });

  async function move(tokens: number) {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens });
    await receiver.receive({ id, state, tokens });
    return receiver.received(id);
  }

  const allFree = () =>
    until("all blocks are free", async () => {
      const both = await Promise.all([sender.stats(), receiver.stats()]);
      return both.every(({ blocks }) => blocks.free === BLOCKS);
    });

  it("arrive byte for byte through 1 MiB of slots, and take no more memory", async () => {
    const before = await Promise.all([sender.resources(), receiver.resources()]);
    expect(await move(TOKENS)).toMatchObject({ wrong: 0, report: { path, bytes: TOKENS * BYTES_PER_TOKEN } });
    const after = await Promise.all([sender.resources(), receiver.resources()]);
    // Heaps of V8 and UCX breathe; what is moved is five times as much.
    for (const [at, now] of after.entries()) expect(moved(now, before[at] as Resources)).toBeLessThan(16 << 10);
    await allFree();
  }, 60_000);

  it("move on while the JavaScript of both sides stands still for two seconds", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: TOKENS });
    await sender.arm({ role: "sender", to: "GRANT", act: "block" });
    await receiver.arm({ role: "receiver", to: "POSTED", act: "block" });
    const began = performance.now();
    await receiver.receive({ id, state, tokens: TOKENS });
    const { report, wrong } = await receiver.received(id);
    expect(performance.now() - began).toBeGreaterThan(BLOCK_MS * 0.9);
    expect(wrong).toBe(0);
    // From the read's first byte to its end, as the thread that saw both says: one that waits for JavaScript takes as long as that stands still.
    expect(report?.movingMs).toBeLessThan(BLOCK_MS * 0.9);
    expect(await sender.sent(id)).toMatchObject({ report: { bytes: TOKENS * BYTES_PER_TOKEN } });
    await allFree();
  }, 60_000);

  it("that are cancelled on their way give every block and slot back", async () => {
    for (let round = 0; round < 4; round++) {
      const id = next++;
      const { state } = await sender.send({ request: id, tokens: TOKENS });
      await receiver.arm({ role: "receiver", to: "POSTED", say: true });
      await receiver.receive({ id, state, tokens: TOKENS });
      await receiver.reached("POSTED");
      await receiver.call("cancelReceive", { id });
      expect(await receiver.received(id)).toMatchObject({ code: "CANCELLED" });
      await allFree();
    }
    expect(await move(320)).toMatchObject({ wrong: 0, report: { path } });
  }, 60_000);

  it("leave no thread awake: both sides take less than 2 % of a core once no lease is out", async () => {
    await allFree();
    // A peer that was heard of within the last second is expected to come back.
    await Promise.all([sender, receiver].map((peer) => peer.call("cpuShare", { ms: 1_500 })));
    // Of a few windows the least: a busy machine makes each wake-up dearer, a thread that stays awake is so in all.
    const least = [1, 1];
    for (let window = 0; window < 4; window++) {
      const shares = await Promise.all(
        [sender, receiver].map((peer) => peer.call<number>("cpuShare", { ms: IDLE_MS })),
      );
      for (const [at, share] of shares.entries()) least[at] = Math.min(share, least[at] ?? 1);
    }
    for (const share of least) expect(share).toBeLessThan(0.02);
  }, 30_000);
});
