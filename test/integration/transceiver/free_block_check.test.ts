import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";

const layout = { layers: 2, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
afterEach(() => vi.unstubAllEnvs());

test.each([
  ["1", true],
  ["", false],
] as const)("a write into a block after its release, with KVT_CHECK='%s', is found: %s", async (value, found) => {
  vi.stubEnv("KVT_CHECK", value);
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-check-"));
  await using kv = await KvTransceiver.open({ layout, pool: { memory: "host", blocks: 4 }, socketDir });
  const hold = kv.pool.allocate(4);
  const [, second = 0] = hold.ids;
  hold.release();
  new Uint8Array(kv.memory)[second * kv.blockBytes + 5] = 1;
  const take = () => kv.pool.allocate(4).release();
  if (found) expect(take).toThrow(`block ${second} was written while it was free`);
  else expect(take).not.toThrow();
  rmSync(socketDir, { recursive: true, force: true });
});
