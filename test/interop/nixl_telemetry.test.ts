import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { bringNixl, setEnvironment } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";

/** 8 MiB, the least of which a rate is told; a piece is 16 tokens of one head. */
const TOKENS = 131_072;
const layout = { layers: 1, kvHeads: 2, headDim: 4, dtype: "f32", attention: "gqa" } as const;
const BYTES_PER_TOKEN = 64;
const PIECE_BYTES = 16 * 16;

const opened = (peers: Peers, tokensPerBlock: number): Promise<Peer> =>
  peers.open({
    layout: { ...layout, tokensPerBlock },
    pool: { memory: "host", blocks: TOKENS / tokensPerBlock },
    verify: "off",
  });

describe.skipIf(library === "")(`a transfer in pieces of ${PIECE_BYTES} bytes over NIXL's TCP${without}`, () => {
  const peers = new Peers();
  let restore: () => void;
  beforeAll(() => {
    restore = setEnvironment({ KVT_NIXL_LIBRARY: library, KVT_PATH: "nixl_direct", UCX_TLS: "tcp" });
  });
  afterAll(async () => {
    restore();
    await peers[Symbol.asyncDispose]();
  });

  it("is reported with NIXL's own telemetry, and raises one warning that says why it is slow", async () => {
    const [sender, receiver] = await Promise.all([opened(peers, 32), opened(peers, 16)]);
    for (const id of [1, 2]) {
      await receiver.fetch(sender, { id, tokens: TOKENS });
      const { report, wrong } = await receiver.received(id);
      expect(wrong).toBe(0);
      expect(report).toMatchObject({ path: "nixl_direct", bytes: TOKENS * BYTES_PER_TOKEN });
      const { posts = 0, postMs = 0, transferMs = 0, descriptors = 0, bytes } = report?.wire ?? {};
      expect(bytes).toBe(report?.bytes);
      // Neighbours at both ends are one.
      expect(descriptors).toBeGreaterThanOrEqual((TOKENS * BYTES_PER_TOKEN) / PIECE_BYTES / 2);
      expect(posts).toBeGreaterThan(1);
      expect(postMs).toBeGreaterThan(0);
      expect(transferMs).toBeGreaterThanOrEqual(postMs);
    }
    const warnings = receiver.log.split("\n").filter((line) => line.includes("moved") && line.includes("GB/s"));
    expect(warnings).toHaveLength(1);
    const { msg, path, gbPerS, linkGbPerS } = JSON.parse(warnings[0] ?? "");
    expect(path).toBe("nixl_direct");
    expect(gbPerS).toBeLessThan(0.05 * linkGbPerS);
    expect(msg).toMatch(/over nixl_direct, \d\.\d % of what memory of one machine moves: /);
    expect(msg).toContain("NIXL is taken between two processes of one machine, where shared memory would do");
    expect(msg).toContain("UCX_TLS=tcp leaves it TCP only");
    expect(msg).toMatch(/its \d+ NIXL descriptors have \d+ bytes each/);
    expect(msg).toContain("kvt doctor --peer measures each path");
  }, 60_000);
});
