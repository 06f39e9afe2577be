import { encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { isKvError } from "../../../src/errors.ts";
import { type Epoch, newEpoch, newToken, requestId } from "../../../src/ids.ts";
import type { Layout } from "../../../src/kv/layout.ts";
import { layoutDifferences } from "../../../src/layout.ts";
import {
  decodeState,
  encodeState,
  joinStates,
  type OpaqueState,
  State,
} from "../../../src/transceiver/opaque_state.ts";
import { equalBytes, layoutDigest, newNonce, proofOf } from "../../../src/transceiver/proof.ts";

const layout: Layout = { layers: 30, kvHeads: 3, headDim: 64, dtype: "bf16", tokensPerBlock: 32, attention: "gqa" };

describe("a proof", () => {
  it("holds for one key, one role and one pair of nonces only", () => {
    const [sender, receiver] = [newNonce(), newNonce()];
    const proof = proofOf("receiver", "token", sender, receiver);
    expect(equalBytes(proof, proofOf("receiver", "token", sender, receiver))).toBe(true);
    expect(equalBytes(proof, proofOf("sender", "token", sender, receiver))).toBe(false);
    expect(equalBytes(proof, proofOf("receiver", "other", sender, receiver))).toBe(false);
    expect(equalBytes(proof, proofOf("receiver", "token", receiver, sender))).toBe(false);
    expect(equalBytes(proof, proofOf("receiver", "token", newNonce(), receiver))).toBe(false);
    expect(equalBytes(proof, new Uint8Array(0))).toBe(false);
  });
});

describe("layouts", () => {
  it("have one digest exactly when nothing that moves bytes differs", () => {
    expect(layoutDigest({ ...layout, attention: "mha" })).toBe(layoutDigest(layout));
    expect(layoutDifferences({ ...layout, attention: "mha" }, layout)).toBe("");
    const others: Partial<Layout>[] = [
      { layers: 31 },
      { kvHeads: 4 },
      { headDim: 32 },
      { dtype: "f16" },
      { attention: "mla" },
    ];
    // Blocks of any size read from blocks of any other.
    expect(layoutDigest({ ...layout, tokensPerBlock: 16 })).toBe(layoutDigest(layout));
    expect(layoutDifferences(layout, { ...layout, tokensPerBlock: 16 })).toBe("");
    for (const other of others) {
      expect(layoutDigest({ ...layout, ...other })).not.toBe(layoutDigest(layout));
      expect(layoutDifferences(layout, { ...layout, ...other })).toMatch(new RegExp(`^${Object.keys(other)[0]} here`));
    }
  });
});

describe("the opaque state", () => {
  const rank = (number: number) => ({
    rank: number,
    epoch: newEpoch(),
    tcp: "tls://[fe80::1234:5678:9abc:def0]:65535",
    unix: `/run/user/1000/kvt/kvt-pool-${newEpoch()}.ctl`,
    token: newToken(),
  });
  const state = (ranks: number): OpaqueState => ({
    instance: "context-3.example.org:4711",
    layout,
    tpSize: ranks,
    ppSize: 1,
    requestId: requestId(2n ** 62n + 1n),
    tokens: 131_072,
    ranks: Array.from({ length: ranks }, (_, number) => rank(number)),
  });

  it("reads as what was written, for any number of ranks", () => {
    for (const ranks of [1, 2, 8]) {
      const one = state(ranks);
      expect(decodeState(encodeState(one))).toEqual({ ...one });
    }
  });

  it("is written as the schema and the library write it, bit for bit", () => {
    for (const ranks of [1, 15, 16, 64]) {
      const one = { ...state(ranks), layout: { ...layout } };
      const pipeline = [ranks, 1];
      const wire = z.encode(State, { version: 1, ...one, pipeline, ranks: [...one.ranks] });
      expect(encodeState({ ...one, pipeline })).toBe(Buffer.from(encode(wire)).toString("base64"));
    }
  });

  it("joins the states of an instance's ranks, and no others", () => {
    const whole = state(4);
    const [first, ...rest] = whole.ranks.map((one) => encodeState({ ...whole, ranks: [one] })).reverse();
    expect(decodeState(joinStates([first as string, ...rest]))).toEqual(whole);
    expect(joinStates([first as string])).toBe(first);
    const another = encodeState({ ...state(4), requestId: requestId(7) });
    for (const wrong of [[], [first as string, first as string], [first as string, another]]) {
      expect(() => joinStates(wrong)).toThrow(/states/);
    }
  });

  it("stays within 2 KiB and 200 bytes a rank", () => {
    for (const ranks of [1, 8, 64]) {
      expect(encodeState(state(ranks)).length).toBeLessThanOrEqual(2048 + 200 * ranks * (4 / 3));
    }
    expect(encodeState(state(1)).length).toBeLessThanOrEqual(2048 + 200);
  });

  it("is refused with BAD_STATE when it is anything else", () => {
    const good = encodeState(state(1));
    const bad = ["", "hello", "{}", good.slice(0, 40), "A".repeat(400_000)];
    for (const text of bad) expect(() => decodeState(text), text.slice(0, 20)).toThrow(/not one of ours/);
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          decodeState(text);
          return false;
        } catch (error) {
          return isKvError(error, "BAD_STATE");
        }
      }),
    );
    const wrong = { ...state(1), ranks: [{ ...rank(0), epoch: "00" as Epoch }] };
    expect(() => decodeState(encodeState(wrong))).toThrow(/not one of ours/);
  });
});
