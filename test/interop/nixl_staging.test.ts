import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BYTES_PER_TOKEN, layout, Peers } from "../integration/transceiver/peer_process.ts";
import { shimNixl } from "./nixl_shim.ts";
import { bringNixl, setEnvironment } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";
const BLOCK_BYTES = BYTES_PER_TOKEN * layout.tokensPerBlock;
const SLOTS = 2;

describe.skipIf(library === "")(`staging slots${without}`, () => {
  const folder = mkdtempSync(join(tmpdir(), "kvt-staging-"));
  const peers = new Peers();
  let restore: () => void;
  beforeAll(() => {
    restore = setEnvironment({ KVT_NIXL_LIBRARY: library, KVT_PATH: "nixl_staged" });
  });
  afterAll(async () => {
    restore();
    await peers[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });

  it("of fewer tokens than a block has hold one block, and KV streams through them", async () => {
    const config = { max_tokens_in_buffer: 1 };
    const [sender, receiver] = await Promise.all([peers.open({ config }), peers.open({ config })]);
    await receiver.fetch(sender, { id: 1, tokens: 150 });
    expect(await receiver.received(1)).toMatchObject({ wrong: 0, report: { tokens: 150, path: "nixl_staged" } });
  }, 30_000);

  it("that the machine has no memory for are one error with their size and what limits it", async () => {
    const tokens = 2 ** 31;
    const slot = tokens * BYTES_PER_TOKEN;
    await expect(peers.open({ config: { max_tokens_in_buffer: tokens } })).rejects.toThrow(
      new RegExp(`STAGING_UNAVAILABLE.*can't be had: ${2 * SLOTS} slots of ${slot} bytes: \\S.* leaves \\d+`),
    );
  }, 30_000);

  it("that can't be registered are one error with their size and how much memory may be locked", async () => {
    const bytes = SLOTS * BLOCK_BYTES;
    const shim = shimNixl(library, join(folder, "shim"));
    const restoreShim = setEnvironment({ KVT_NIXL_LIBRARY: shim, KVT_TEST_REFUSE_BYTES: String(bytes) });
    try {
      const opening = peers.open({ config: { max_tokens_in_buffer: layout.tokensPerBlock } });
      await expect(opening).rejects.toThrow(
        new RegExp(`STAGING_UNAVAILABLE.*registering memory ended with BACKEND.*\\(${bytes} bytes`),
      );
    } finally {
      restoreShim();
    }
  }, 60_000);
});
