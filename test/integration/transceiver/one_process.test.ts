import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";

const layout = { layers: 4, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
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
