import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { NativeCudaReport } from "../../../src/native/cuda_binding.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { BLOCKS, BYTES_PER_TOKEN, buildIfStale, layout, type Peer, Peers, POOL_TOKENS } from "./peer_process.ts";

/** Of the C++ tests: CUDA's functions on memory of the host. */
const fake = new URL("../../../build-tests/libcuda_fake.so", import.meta.url).pathname;
const probe = new URL("../../../bench/gpu/probe.mjs", import.meta.url).pathname;

buildIfStale();
const gpus = (env: NodeJS.ProcessEnv): NativeCudaReport =>
  JSON.parse(execFileSync(process.execPath, [probe], { encoding: "utf8", env: { ...process.env, ...env } }));
const real = gpus({});
const env = real.devices.length > 0 ? {} : { KVT_CUDA_LIBRARY: fake };
const missing =
  real.devices.length > 0 || existsSync(fake)
    ? ""
    : `${real.why ?? "CUDA sees no GPU"}; the fake of one is built by \`npm run test:cpp\``;
const memory = "cuda:0";

describe.skipIf(missing !== "")(`pools on a GPU${missing === "" ? "" : ` (${missing})`}`, () => {
  const peers = new Peers();
  let sender: Peer;
  let receiver: Peer;
  let next = 1;
  const open = () => peers.open({ pool: { memory, blocks: BLOCKS } });
  beforeAll(async () => {
    Object.assign(process.env, env);
    [sender, receiver] = await Promise.all([open(), open()]);
  });
  afterAll(() => peers[Symbol.asyncDispose]());

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
    expect(await receiver.received(id)).toMatchObject({
      wrong: 0,
      report: {
        tokens,
        bytes: (tokens - skipTokens) * BYTES_PER_TOKEN,
        ...(tokens > skipTokens ? { path: "cuda_peer" } : {}),
      },
    });
    expect(await sender.sent(id)).toHaveProperty("report");
  });

  it("each block's digest is computed on the GPU at both ends and found equal, also of parts of blocks", async () => {
    const comparing = await peers.open({ pool: { memory, blocks: BLOCKS }, verify: "full" });
    for (const [tokens, skipTokens] of [[POOL_TOKENS, 0] as const, [150, 45] as const]) {
      const id = next++;
      await comparing.fetch(sender, { id, tokens, skipTokens });
      expect(await comparing.received(id)).toMatchObject({ wrong: 0, report: { path: "cuda_peer", attempts: 1 } });
    }
    expect((await comparing.stats()).mismatches).toBe(0);
  });

  it.skipIf(real.devices.length > 0)(
    "a digest that CUDA fails to compute ends the transfer, at either side",
    async () => {
      const comparing = await peers.open({ pool: { memory, blocks: BLOCKS }, verify: "full" });
      process.env.KVT_FAKE_CUDA_FAILS = "kvt_digest_ends";
      const failing = await peers.open({ pool: { memory, blocks: BLOCKS }, verify: "full" });
      delete process.env.KVT_FAKE_CUDA_FAILS;
      const there = next++;
      await comparing.fetch(failing, { id: there, tokens: 100 });
      const why = /the digests of its blocks could not be computed/;
      expect(await comparing.received(there)).toMatchObject({
        code: "SENDER_ABORTED",
        message: expect.stringMatching(why),
      });
      expect(await failing.sent(there)).toMatchObject({ code: "COPY_FAILED", message: expect.stringMatching(why) });
      expect(failing.log).toMatch(/digests on .*cuLaunchKernel of kvt_digest_ends/);
      const here = next++;
      await failing.fetch(sender, { id: here, tokens: 100 });
      expect(await failing.received(here)).toMatchObject({ code: "COPY_FAILED" });
      // What it said to the sender: an end with a status.
      expect(await sender.sent(here)).toMatchObject({ code: "RECEIVER_FAILED" });
    },
  );

  it("data is fetched while the prefill goes on", async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 200, ready: 64 });
    await receiver.receive({ id, state, tokens: 200 });
    await receiver.arrived(id, 64);
    await sender.call("ready", { request: id, tokens: 200 });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, seen: [64, 200] });
  });

  it("a granted pull ends with the right bytes although its sender is killed, and another sender is used at once", async () => {
    const doomed = await open();
    const id = next++;
    const { state } = await doomed.send({ request: id, tokens: POOL_TOKENS });
    // The receiver kills it when it has given the read to the data plane.
    await receiver.arm({ role: "receiver", to: "POSTED", pid: doomed.pid, act: "SIGKILL" });
    await receiver.receive({ id, state, tokens: POOL_TOKENS });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0 });
    await receiver.arm(null);
    const after = await move(100);
    expect(await receiver.received(after)).toMatchObject({ wrong: 0 });
  });

  it("a peer with a pool in memory of the host is told that the two have no path in common", async () => {
    const host = await peers.open();
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 32 });
    await host.receive({ id, state, tokens: 32 });
    const ended = await host.received(id);
    expect(ended.message).toMatch(/no path that this side has/);
  });
});

it("a GPU that does not exist is refused with the number of those that do", async () => {
  const pool = { memory: "cuda:77", blocks: 1 } as const;
  await expect(KvTransceiver.open({ layout, pool })).rejects.toMatchObject({ code: "CUDA_UNUSABLE" });
});
