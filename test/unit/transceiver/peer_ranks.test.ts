import { describe, expect, it } from "vitest";
import { Layout } from "../../../src/layout.ts";
import { PeerRanks } from "../../../src/transceiver/peer_ranks.ts";

const own = { tpRank: 1, tpSize: 4, ppRank: 0, ppSize: 1 };
const shape = { layers: 6, kvHeads: 2, headDim: 8, dtype: "f16" };
const ranks = (groups?: readonly object[]) => new PeerRanks(Layout.parse({ ...shape, groups }), own);

describe("the readers of a rank", () => {
  it("are those of the instance that a PULL claims, each with what it takes", () => {
    const peers = ranks();
    expect(peers.readers({ tpSize: 4, ppSize: 1 })).toEqual([1]);
    // Ranks 0 and 1 keep one head: of the reader's two stages, each takes it from another.
    expect(peers.readers({ tpSize: 2, ppSize: 2, pipeline: [5, 1] })).toEqual([2]);
    const part = { layers: { from: 5, to: 6 }, heads: { from: 0, to: 1 }, replicated: true };
    expect(peers.partFor(2, { tpSize: 2, ppSize: 2, pipeline: [5, 1] })).toEqual(part);
    // As another DP group it begins with the other replica.
    expect(peers.readers({ tpSize: 2, ppSize: 1, dpRank: 1 })).toEqual([0]);
  });

  it("are none where the claim can't be: no ranks, too many, more stages than layers, stages of other layers", () => {
    const peers = ranks();
    for (const claim of [
      { tpSize: 0, ppSize: 1 },
      { tpSize: 4096, ppSize: 4096 },
      { tpSize: 1, ppSize: 7 },
      { tpSize: 1, ppSize: 2, pipeline: [6] },
      { tpSize: 1, ppSize: 2, pipeline: [3, 4] },
    ]) {
      expect(peers.readers(claim)).toEqual([]);
    }
  });

  it("are none but those of an equal instance where bytes are opaque", () => {
    const peers = ranks([{ name: "state", kind: "opaque", bytesPerToken: 4 }]);
    expect(peers.readers({ tpSize: 4, ppSize: 1 })).toEqual([1]);
    expect(peers.readers({ tpSize: 2, ppSize: 1 })).toEqual([]);
    expect(peers.readers({ tpSize: 4, ppSize: 1, pipeline: [6] })).toEqual([]);
  });
});
