import { describe, expect, it } from "vitest";
import {
  neededRanks,
  type ParallelSizes,
  partOf,
  placeOf,
  rankOf,
  ranksOf,
  readersOf,
  shareOf,
  unneededRanks,
} from "../../../src/kv/ranks.ts";

const models = [
  { layers: 1, kvHeads: 1 },
  { layers: 5, kvHeads: 2 },
  { layers: 4, kvHeads: 3 },
  { layers: 7, kvHeads: 4 },
  { layers: 8, kvHeads: 8 },
  { layers: 3, kvHeads: 24 },
];
const sizes = [1, 2, 3, 4, 8];

/** All instances that can hold a model, one with stages of its own among them. */
const instances = ({ layers }: (typeof models)[number]): readonly ParallelSizes[] => [
  ...sizes.flatMap((tpSize) => sizes.filter((ppSize) => ppSize <= layers).map((ppSize) => ({ tpSize, ppSize }))),
  ...(layers < 3 ? [] : [{ tpSize: 2, ppSize: 2, pipeline: [layers - 1, 1] }]),
];

describe("the shares of an instance's ranks", () => {
  it("cover every layer and head, each as often as there are replicas, and number the ranks stage by stage", () => {
    for (const model of models) {
      for (const instance of instances(model)) {
        const copies = Math.max(1, instance.tpSize / model.kvHeads);
        const counts = new Set([Math.floor(copies), Math.ceil(copies)]);
        const held = new Map<string, number>();
        for (const rank of ranksOf(instance)) {
          const place = placeOf(rank, instance);
          expect(rankOf(place)).toBe(rank);
          const { layers, heads } = shareOf(model, place);
          for (let layer = layers.from; layer < layers.to; layer++) {
            for (let head = heads.from; head < heads.to; head++) {
              held.set(`${layer}.${head}`, (held.get(`${layer}.${head}`) ?? 0) + 1);
            }
          }
        }
        expect(held.size).toBe(model.layers * model.kvHeads);
        for (const count of held.values()) expect(counts).toContain(count);
      }
    }
  });

  it("give the first stages the layers that are left over, as TensorRT-LLM does", () => {
    const model = { layers: 10, kvHeads: 8 };
    const layers = [0, 1, 2, 3].map((ppRank) => shareOf(model, { tpRank: 0, tpSize: 1, ppRank, ppSize: 4 }).layers);
    expect(layers).toEqual([
      { from: 0, to: 3 },
      { from: 3, to: 6 },
      { from: 6, to: 8 },
      { from: 8, to: 10 },
    ]);
  });

  it("give the first ranks the heads that are left over, and replicas of a head to neighbours", () => {
    const heads = (kvHeads: number, tpSize: number) =>
      Array.from({ length: tpSize }, (_, tpRank) => {
        const { from, to } = shareOf({ layers: 1, kvHeads }, { tpRank, tpSize, ppRank: 0, ppSize: 1 }).heads;
        return `${from}-${to - 1}`;
      });
    expect(heads(8, 3)).toEqual(["0-2", "3-5", "6-7"]);
    expect(heads(2, 4)).toEqual(["0-0", "0-0", "1-1", "1-1"]);
    expect(heads(2, 3)).toEqual(["0-0", "0-0", "1-1"]);
  });

  it("are the stages that the pipeline lists", () => {
    const layers = [0, 1, 2].map(
      (ppRank) =>
        shareOf({ layers: 10, kvHeads: 1 }, { tpRank: 0, tpSize: 1, ppRank, ppSize: 3, pipeline: [5, 1, 4] }).layers,
    );
    expect(layers).toEqual([
      { from: 0, to: 5 },
      { from: 5, to: 6 },
      { from: 6, to: 10 },
    ]);
  });

  it("are refused, with the sizes, where layers can't be spread", () => {
    const place = { tpRank: 0, tpSize: 1, ppRank: 0 };
    expect(() => shareOf({ layers: 4, kvHeads: 4 }, { ...place, ppSize: 5 })).toThrow(/ppSize 5.*4 layers/);
    for (const pipeline of [[4], [1, 2], [1, 1, 2]]) {
      expect(() => shareOf({ layers: 4, kvHeads: 4 }, { ...place, ppSize: 2, pipeline })).toThrow(/pipeline \[/);
    }
  });
});

describe("the ranks that a reader pulls from", () => {
  const pairs = models.flatMap((model) =>
    instances(model).flatMap((sender) => instances(model).map((reader) => ({ model, sender, reader }))),
  );

  it("hold its share together, each head of each layer once, and none is asked in vain", () => {
    expect(pairs.length).toBeGreaterThan(1500);
    const wrong: unknown[] = [];
    for (const { model, sender, reader } of pairs) {
      for (const rank of ranksOf(reader)) {
        const wanted = shareOf(model, placeOf(rank, reader));
        const needed = neededRanks(model, placeOf(rank, reader), sender);
        const shares = needed.map((other) => shareOf(model, placeOf(other, sender)));
        for (let layer = wanted.layers.from; layer < wanted.layers.to; layer++) {
          for (let head = wanted.heads.from; head < wanted.heads.to; head++) {
            const holders = shares.filter(
              ({ layers, heads }) => layers.from <= layer && layer < layers.to && heads.from <= head && head < heads.to,
            );
            if (holders.length !== 1) wrong.push({ model, sender, reader, rank, layer, head, holders });
          }
        }
        for (const { layers, heads } of shares) {
          const layersMeet = layers.from < wanted.layers.to && wanted.layers.from < layers.to;
          const headsMeet = heads.from < wanted.heads.to && wanted.heads.from < heads.to;
          if (!layersMeet || !headsMeet) wrong.push({ model, sender, reader, rank, layers, heads });
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  it("give it groups without heads once for each of its layers", () => {
    const wrong: unknown[] = [];
    for (const { model, sender, reader } of pairs) {
      for (const rank of ranksOf(reader)) {
        const place = placeOf(rank, reader);
        const givers = neededRanks(model, place, sender)
          .map((other) => partOf(model, place, placeOf(other, sender)))
          .filter(({ replicated }) => replicated);
        const { layers } = shareOf(model, place);
        const given = givers.flatMap((part) =>
          Array.from({ length: part.layers.to - part.layers.from }, (_, at) => part.layers.from + at),
        );
        const wanted = Array.from({ length: layers.to - layers.from }, (_, at) => layers.from + at);
        if (given.sort((left, right) => left - right).join() !== wanted.join())
          wrong.push({ model, sender, reader, rank });
      }
    }
    expect(wrong).toEqual([]);
  });

  it("are each asked by as many as the other replicas of their head, give or take one", () => {
    const wrong: unknown[] = [];
    for (const { model, sender, reader } of pairs) {
      const asked = new Map<string, number[]>();
      for (const rank of ranksOf(sender)) {
        const place = placeOf(rank, sender);
        const { layers, heads } = shareOf(model, place);
        if (sender.tpSize <= model.kvHeads) continue;
        const readers = ranksOf(reader).filter((one) =>
          neededRanks(model, placeOf(one, reader), sender).includes(rank),
        );
        const key = `${layers.from} ${heads.from}`;
        asked.set(key, [...(asked.get(key) ?? []), readers.length]);
      }
      for (const [key, counts] of asked) {
        if (Math.max(...counts) - Math.min(...counts) > 1) wrong.push({ model, sender, reader, key, counts });
      }
    }
    expect(wrong).toEqual([]);
  });

  it("are itself alone between equal instances", () => {
    for (const { model, sender } of pairs) {
      for (const rank of ranksOf(sender)) {
        expect(neededRanks(model, placeOf(rank, sender), sender)).toEqual([rank]);
      }
      expect(unneededRanks(model, sender, sender)).toEqual([]);
    }
  });

  it("see the same readers from the other side, and a rank that nobody needs is ended by one that could read it", () => {
    for (const { model, sender, reader } of pairs) {
      const unneeded = unneededRanks(model, reader, sender);
      for (const own of ranksOf(sender)) {
        const needing = ranksOf(reader).filter((rank) =>
          neededRanks(model, placeOf(rank, reader), sender).includes(own),
        );
        expect(needing.length === 0).toBe(unneeded.includes(own));
        const readers = readersOf(model, placeOf(own, sender), reader);
        if (needing.length > 0) expect(readers).toEqual(needing);
        else {
          const [held, read] = [
            shareOf(model, placeOf(own, sender)),
            shareOf(model, placeOf(readers[0] ?? -1, reader)),
          ];
          expect(readers).toHaveLength(1);
          expect(held.layers.from < read.layers.to && read.layers.from < held.layers.to).toBe(true);
          expect(held.heads.from < read.heads.to && read.heads.from < held.heads.to).toBe(true);
        }
      }
    }
  });

  it("leave the replicas out", () => {
    const model = { layers: 4, kvHeads: 2 };
    expect(neededRanks(model, placeOf(0, { tpSize: 1, ppSize: 1 }), { tpSize: 4, ppSize: 2 })).toEqual([0, 2, 4, 6]);
    expect(unneededRanks(model, { tpSize: 1, ppSize: 1 }, { tpSize: 4, ppSize: 2 })).toEqual([1, 3, 5, 7]);
    expect(readersOf(model, placeOf(0, { tpSize: 2, ppSize: 1 }), { tpSize: 8, ppSize: 1 })).toEqual([0, 1, 2, 3]);
  });
});
