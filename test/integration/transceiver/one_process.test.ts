import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { Gate } from "./gated_plane.ts";

const layout = { layers: 4, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
const BLOCK_BYTES = 4 * 2 * 2 * 32 * 16 * 4;
const hasPython = (): boolean => spawnSync("python3", ["--version"]).status === 0;

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-one-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

test("a request's KV moves from one pool to another, byte for byte", async () => {
  await using sender = await KvTransceiver.open({ layout, pool: { memory: "host", blocks: 64 }, socketDir });
  await using receiver = await KvTransceiver.open({ layout, pool: { memory: "host", blocks: 64 }, socketDir });
  const source = sender.pool.allocate(5);
  const bytes = new Uint8Array(sender.memory);
  for (const id of source.ids) bytes.subarray(id * sender.blockBytes, (id + 1) * sender.blockBytes).fill(id + 1);
  const sending = sender.send({ requestId: requestId(7), tokens: 150, blocks: source });
  source.release();
  const target = receiver.pool.allocate(5);
  const receiving = receiver.receive({ state: sending.state, blocks: target });
  const report = await receiving.done;
  const sent = await sending.done;
  expect(report.bytes).toBe(150 * 4 * 2 * 2 * 16 * 4);
  expect(sent.bytes).toBe(report.bytes);
  const arrived = new Uint8Array(receiver.memory);
  expect(arrived[(target.ids[1] ?? 0) * receiver.blockBytes]).toBe((source.ids[1] ?? 0) + 1);
  target.release();
  expect(sender.pool.free).toBe(64);
  expect(receiver.pool.free).toBe(64);
});

test("offers are bounded in number: one more is refused until one has ended, and what is leased shows in the statistics", async () => {
  const options = { layout, pool: { memory: "host", blocks: 64 }, socketDir } as const;
  await using sender = await KvTransceiver.open({ ...options, maxOffers: 2 });
  await using receiver = await KvTransceiver.open(options);
  const offer = (id: number, ready: number) => {
    using blocks = sender.pool.allocate(2);
    return sender.send({ requestId: requestId(id), tokens: 64, blocks, ready });
  };
  const growing = offer(1, 32);
  const whole = offer(2, 64);
  expect(() => offer(3, 64)).toThrow(expect.objectContaining({ code: "OFFERS_FULL", status: 429 }));
  expect(sender.stats()).toMatchObject({ blocks: { pinned: 4, leased: 0, free: 60 }, sends: { open: 2, leased: 0 } });

  using target = receiver.pool.allocate(2);
  const receiving = receiver.receive({ state: growing.state, blocks: target });
  for await (const tokens of receiving.progress) if (tokens === 32) break;
  expect(sender.stats()).toMatchObject({ blocks: { pinned: 4, leased: 2 }, sends: { open: 2, leased: 1 } });
  expect(growing.cancel()).toBe("in_flight");
  await expect(receiving.done).rejects.toMatchObject({ code: "SENDER_ABORTED" });
  await expect(growing.done).rejects.toMatchObject({ code: "CANCELLED" });
  expect(whole.cancel()).toBe("cancelled");
  expect(whole.cancel()).toBe("already_complete");
  expect(sender.stats()).toMatchObject({ blocks: { pinned: 0, leased: 0, free: 64 } });
  await receiving.released;
  target.release();
  expect(receiver.pool.free).toBe(64);
  offer(4, 64).cancel();
});

test("a pull that waits for its turn has a limit and a code of its own, one that runs has another", async () => {
  const gate = new Gate();
  const options = { layout, pool: { memory: "host", blocks: 64 }, socketDir } as const;
  await using sender = await KvTransceiver.open(options);
  await using receiver = await KvTransceiver.open(
    { ...options, maxConcurrentPulls: 1, config: { kv_transfer_timeout_ms: 200 } },
    { plane: gate.around },
  );
  const start = (id: number) => {
    using blocks = sender.pool.allocate(2);
    const { state } = sender.send({ requestId: requestId(id), tokens: 64, blocks });
    using target = receiver.pool.allocate(2);
    return receiver.receive({ state, blocks: target });
  };
  gate.close();
  const held = new Promise<void>((resolve) => {
    gate.onHeld = resolve;
  });
  const running = start(1);
  const waiting = start(2);
  await held;
  expect(receiver.stats().receives).toMatchObject({ open: 2, waiting: 1 });
  await expect(waiting.done).rejects.toMatchObject({ code: "QUEUE_TIMEOUT" });
  await expect(running.done).rejects.toMatchObject({ code: "TRANSFER_TIMEOUT" });
  gate.open();
  await expect(start(3).done).resolves.toMatchObject({ tokens: 64 });
});

test("a receiver runs no more pulls at a time than the sender says it serves", async () => {
  const gate = new Gate();
  const options = { layout, pool: { memory: "host", blocks: 64 }, socketDir } as const;
  await using sender = await KvTransceiver.open({ ...options, maxConcurrentSends: 2 });
  await using receiver = await KvTransceiver.open(options, { plane: gate.around });
  const start = (id: number) => {
    using blocks = sender.pool.allocate(2);
    const { state, done } = sender.send({ requestId: requestId(id), tokens: 64, blocks });
    using target = receiver.pool.allocate(2);
    return Promise.all([done, receiver.receive({ state, blocks: target }).done]);
  };
  // Before it is connected to, nobody knows.
  await start(1);
  gate.close();
  let heldReads = 0;
  const bothHeld = new Promise<void>((resolve) => {
    gate.onHeld = () => ++heldReads === 2 && resolve();
  });
  const pulls = [2, 3, 4, 5, 6].map(start);
  await bothHeld;
  expect(sender.stats().sends).toMatchObject({ open: 5, leased: 2 });
  expect(receiver.stats().receives).toMatchObject({ open: 5, waiting: 3 });
  gate.open();
  await Promise.all(pulls);
  expect(sender.pool.free).toBe(64);
});

// Node makes no memfd of its own.
test.skipIf(!hasPython())(
  "a memfd of another process, adopted as a pool, is read and written in place (needs python3)",
  async () => {
    const bytes = 64 * BLOCK_BYTES;
    const program = `import os,sys
fd = os.memfd_create("foreign", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, ${bytes})
os.pwrite(fd, b"k" * ${bytes}, 0)
print(fd, flush=True)
sys.stdin.read(1)
print(os.pread(fd, 1, ${5 * BLOCK_BYTES}).decode(), flush=True)
`;
    const owner = spawn("python3", ["-c", program], { stdio: ["pipe", "pipe", "inherit"] });
    const line = async (): Promise<string> => String((await once(owner.stdout, "data"))[0]).trim();
    const fd = openSync(`/proc/${owner.pid}/fd/${await line()}`, "r+");
    {
      const pool = { adopt: [{ fd, offset: 0, bytes }], blocks: 64 };
      await using foreign = await KvTransceiver.open({ layout, pool, socketDir });
      await using own = await KvTransceiver.open({ layout, pool: { memory: "host", blocks: 64 }, socketDir });
      const lent = foreign.pool.allocate(3);
      const sending = foreign.send({ requestId: requestId(8), tokens: 96, blocks: lent });
      const received = own.pool.allocate(3);
      await own.receive({ state: sending.state, blocks: received }).done;
      await sending.done;
      for (const id of received.ids) {
        expect(Buffer.from(own.memory, id * BLOCK_BYTES, BLOCK_BYTES).toString()).toBe("k".repeat(BLOCK_BYTES));
      }
      new Uint8Array(foreign.memory)[5 * BLOCK_BYTES] = 119;
      lent.release();
      received.release();
    }
    closeSync(fd);
    owner.stdin.end("x");
    expect(await line()).toBe("w");
  },
);
