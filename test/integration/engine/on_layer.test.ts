import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { OpenedEngine, sampling, TINY } from "./opened_engine.ts";

const TOKENS = 900;

/** Of one layer of the packed pool: it lies in one stretch of each block. */
function layersOf(opened: OpenedEngine, from: number, to: number): Buffer {
  const { layers, blockBytes } = opened.engine.geometry;
  const bytes = blockBytes / layers;
  const blocks = opened.table(TOKENS).map((id) => Buffer.from(opened.block(id).slice(from * bytes, to * bytes)));
  return Buffer.concat(blocks);
}

describe("onLayer of a prefill", () => {
  let opened: OpenedEngine;
  beforeAll(async () => {
    opened = await OpenedEngine.open(TINY);
  });
  afterAll(async () => {
    await opened[Symbol.asyncDispose]();
  });
  const prefill = (salt: number, onLayer: { from: number; written: (layers: number) => void }) =>
    opened.engine.prefill({
      tokens: Uint32Array.from({ length: TOKENS }, (_, at) => 300 + ((at * 7 + salt) % 90)),
      startPos: 0,
      blockTable: opened.table(TOKENS),
      sampling: sampling(),
      onLayer,
    });

  it("names layers whose KV is in the blocks already, rising, while later ones are still computed", async () => {
    const { layers } = opened.engine.geometry;
    const told: { layers: number; bytes: Buffer; rest: Buffer }[] = [];
    for (let salt = 0; salt < 3; salt++) {
      told.length = 0;
      const sample = await prefill(salt, {
        from: 1,
        written: (now) =>
          told.push({ layers: now, bytes: layersOf(opened, 0, now), rest: layersOf(opened, now, layers) }),
      });
      expect(sample).toBeDefined();
      const counts = told.map((one) => one.layers);
      expect(counts).toEqual([...new Set(counts)].sort((left, right) => left - right));
      for (const one of told) expect(one.bytes.equals(layersOf(opened, 0, one.layers))).toBe(true);
    }
    // Not all: what falls together is told once. But the last call's first layers were told before the others were written.
    const early = told.filter((one) => one.layers < layers && !one.rest.equals(layersOf(opened, one.layers, layers)));
    expect(early.length).toBeGreaterThan(0);
  });

  it("says nothing below the count that is asked for, and the last before token 0 is known", async () => {
    const { layers } = opened.engine.geometry;
    let before = 0;
    for (let salt = 10; salt < 15; salt++) {
      const counts: number[] = [];
      await prefill(salt, { from: layers, written: (now) => counts.push(now) });
      expect(counts.length === 0 || (counts.length === 1 && counts[0] === layers)).toBe(true);
      before += counts.length;
    }
    expect(before).toBeGreaterThan(0);
  });

  it("is over with its call: one that was cancelled says nothing more", async () => {
    const controller = new AbortController();
    let calls = 0;
    let over = false;
    let late = 0;
    const cancelled = opened.engine
      .prefill({
        tokens: new Uint32Array(TOKENS).fill(301),
        startPos: 0,
        blockTable: opened.table(TOKENS),
        signal: controller.signal,
        onLayer: {
          from: 1,
          written: () => {
            calls++;
            if (over) late++;
            controller.abort();
          },
        },
      })
      .then(
        () => "done",
        (error: { code: string }) => error.code,
      );
    expect(await cancelled).toBe("CANCELLED");
    over = true;
    await prefill(99, { from: 1, written: () => {} });
    expect([calls > 0, late]).toEqual([true, 0]);
  });
});
