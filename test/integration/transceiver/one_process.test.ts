import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";

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
