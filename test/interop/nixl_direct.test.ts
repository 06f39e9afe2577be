import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { BLOCKS, BYTES_PER_TOKEN, type Peer, Peers, POOL_TOKENS } from "../integration/transceiver/peer_process.ts";
import { until } from "../integration/waits.ts";
import { bringNixl, nixlCases, setEnvironment } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";

describe.each(nixlCases())("path $name", ({ env, missing }) => {
  const path = env.KVT_PATH;
  const peers = new Peers();
  let restore: () => void;
  let sender: Peer;
  let receiver: Peer;
  let next = 1;
  beforeAll(async () => {
    if (missing !== undefined) return;
    restore = setEnvironment(env);
    [sender, receiver] = await Promise.all([peers.open(), peers.open()]);
  }, 60_000);
  afterAll(async () => {
    restore?.();
    await peers[Symbol.asyncDispose]();
  });
  beforeEach(({ skip }) => {
    if (missing !== undefined) skip(missing);
  });

  async function move(tokens: number, skipTokens = 0): Promise<number> {
    const id = next++;
    await receiver.fetch(sender, { id, tokens, skipTokens });
    return id;
  }

  it.each([
    [1, 0],
    [33, 0],
    [150, 45],
    [150, 150],
    [POOL_TOKENS, 0],
  ])("%i tokens without the first %i arrive byte for byte, and nothing else is written", async (tokens, skipTokens) => {
    const id = await move(tokens, skipTokens);
    const bytes = (tokens - skipTokens) * BYTES_PER_TOKEN;
    const moved = bytes === 0 ? {} : { path };
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens, bytes, ...moved } });
    expect(await sender.sent(id)).toMatchObject({ report: { bytes, path } });
  });

  it("data is fetched while the prefill goes on", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 200, ready: 64 });
    await receiver.receive({ id, state, tokens: 200 });
    await receiver.arrived(id, 64);
    await sender.call("ready", { request: id, tokens: 200 });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, seen: [64, 200], report: { chunks: 2 } });
  });

  it("32 at once, and both directions, all arrive and give every block back", async () => {
    const ids = await Promise.all(Array.from({ length: 32 }, () => move(32)));
    const back = next++;
    const { state } = await receiver.send({ request: back, tokens: 320 });
    await sender.receive({ id: back, state, tokens: 320 });
    for (const end of await Promise.all(ids.map((id) => receiver.received(id))))
      expect(end).toMatchObject({ wrong: 0 });
    expect(await sender.received(back)).toMatchObject({ wrong: 0, report: { path } });
    await until("all blocks are free", async () => {
      const both = await Promise.all([sender.stats(), receiver.stats()]);
      return both.every(({ blocks }) => blocks.free === BLOCKS);
    });
    expect((await receiver.stats()).peers[0]?.path).toBe(path);
  });

  it("a sender that is killed while it is read ends the transfer with a code, and its successor is read at once", async () => {
    const lease = { leaseMs: 1_000 };
    const short = await peers.open({ lease });
    const id = next++;
    const { state } = await short.send({ request: id, tokens: 1024, ready: 64 });
    await receiver.receive({ id, state, tokens: 1024 });
    await receiver.arrived(id, 64);
    await short.kill();
    expect(await receiver.received(id)).toMatchObject({
      code: expect.stringMatching(/^(PEER_LOST|PEER_UNREACHABLE|LEASE_EXPIRED|COPY_FAILED)$/),
    });
    const successor = await peers.open({ lease });
    const again = next++;
    const offered = await successor.send({ request: again, tokens: 96 });
    await receiver.receive({ id: again, state: offered.state, tokens: 96 });
    expect(await receiver.received(again)).toMatchObject({ wrong: 0, report: { tokens: 96 } });
    await until("all blocks are free", async () => (await receiver.stats()).blocks.free === BLOCKS);
    await successor.kill();
  });
});

describe.skipIf(library === "")(`paths of two sides${without}`, () => {
  const peers = new Peers();
  let restore: () => void;
  beforeAll(() => {
    restore = setEnvironment({ KVT_NIXL_LIBRARY: library });
  });
  afterAll(async () => {
    restore();
    await peers[Symbol.asyncDispose]();
  });

  async function moved(from: Peer, to: Peer, id: number) {
    const { state } = await from.send({ request: id, tokens: 64 });
    await to.receive({ id, state, tokens: 64 });
    return to.received(id);
  }

  it("are tried from the cheapest on, and a pair with none in common is refused with what to look at", async () => {
    const config = { backend: "NIXL" as const };
    const mapped = await peers.open({ path: "shared_memory" });
    const [both, other] = [await peers.open({ config }), await peers.open({ config })];
    const nixl = await peers.open({ path: "nixl_direct" });
    const staged = await peers.open({ path: "nixl_staged" });
    const elsewhere = await peers.open({ config, sameHost: false });
    expect(await moved(both, other, 1)).toMatchObject({ wrong: 0, report: { path: "shared_memory" } });
    expect(await moved(both, nixl, 2)).toMatchObject({ wrong: 0, report: { path: "nixl_direct" } });
    // Its pieces are small.
    expect(await moved(elsewhere, both, 3)).toMatchObject({ wrong: 0, report: { path: "nixl_staged" } });
    expect(await moved(staged, both, 5)).toMatchObject({ wrong: 0, report: { path: "nixl_staged" } });
    expect(await moved(staged, nixl, 6)).toMatchObject({ code: "NO_PATH" });
    expect(await moved(mapped, nixl, 4)).toMatchObject({
      code: "NO_PATH",
      message: expect.stringContaining("it has no path that this side has"),
    });
  }, 60_000);

  it("are not opened without the NIXL that they are to go over", async () => {
    const restoreLibrary = setEnvironment({ KVT_NIXL_LIBRARY: "/absent/libnixl_capi.so" });
    try {
      await expect(peers.open({ path: "nixl_direct" })).rejects.toThrow("NIXL_UNUSABLE");
      await expect(peers.open({ config: { backend: "NIXL" } })).rejects.toThrow("NIXL_UNUSABLE");
      const ucx = await peers.open({ config: { backend: "UCX" } });
      expect(ucx.log).toMatch(/KV moves between processes of this host only/);
    } finally {
      restoreLibrary();
    }
  }, 30_000);
});
