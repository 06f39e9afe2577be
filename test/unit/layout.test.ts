import { describe, expect, it } from "vitest";
import { groupsOf, instanceDifferences, Layout, layoutDifferences, layoutKey } from "../../src/layout.ts";

const plain: Layout = {
  layers: 6,
  kvHeads: 4,
  headDim: 16,
  dtype: "fp8_e4m3",
  tokensPerBlock: 16,
  attention: "gqa",
};
const parse = (groups: readonly object[], more: object = {}): Layout => Layout.parse({ ...plain, ...more, groups });
const quantized = parse([
  { name: "full", kind: "kv", layers: [0, 3] },
  { name: "local", kind: "kv", layers: [1, 2, 4, 5], window: 128 },
  { name: "scales", kind: "scales", bytesPerToken: 32 },
]);

describe("the groups of a layout", () => {
  it("are one of all layers where none are named: K and V of each head, or one latent", () => {
    expect(groupsOf(plain)).toEqual([
      {
        name: "kv",
        kind: "kv",
        layers: [0, 1, 2, 3, 4, 5],
        planes: 2,
        heads: 4,
        headAxis: true,
        elementBytes: 16,
        perBlock: false,
        window: null,
      },
    ]);
    expect(groupsOf({ ...plain, attention: "mla", kvHeads: 1 })).toMatchObject([
      { kind: "latent", planes: 1, heads: 1 },
    ]);
  });

  it("have the sizes of their kind, by name", () => {
    const [full, local, scales] = groupsOf(quantized);
    expect(full).toMatchObject({ name: "full", layers: [0, 3], planes: 2, heads: 4, elementBytes: 16, window: null });
    expect(local).toMatchObject({ name: "local", window: 128 });
    expect(scales).toMatchObject({ name: "scales", planes: 2, heads: 4, elementBytes: 4, perBlock: false });
    const [latent, state] = groupsOf(
      parse([
        { name: "state", kind: "opaque", bytesPerBlock: 100 },
        { name: "latent", kind: "latent", bytesPerToken: 576 },
      ]),
    );
    expect(latent).toMatchObject({ name: "latent", planes: 1, heads: 1, headAxis: false, elementBytes: 576 });
    expect(state).toMatchObject({ name: "state", heads: 1, perBlock: true, elementBytes: 100 });
  });

  it.each([
    [[{ name: "a", kind: "scales" }], /bytesPerToken or bytesPerBlock/],
    [[{ name: "a", kind: "scales", bytesPerToken: 12 }], /multiple of 8: 2 planes of 4 heads/],
    [[{ name: "a", kind: "opaque", bytesPerToken: 1, bytesPerBlock: 1 }], /not both/],
    [[{ name: "a", kind: "kv", layers: [6] }], /layer 6 is not one of 6/],
    [[{ name: "a", kind: "kv", layers: [2, 1] }], /must rise/],
    [
      [
        { name: "a", kind: "kv" },
        { name: "a", kind: "kv" },
      ],
      /another group is called a/,
    ],
  ])("%j are refused", (groups, words) => {
    expect(() => parse(groups)).toThrow(words);
  });
});

describe("two layouts", () => {
  const same = (left: Layout, right: Layout): void => {
    expect(layoutDifferences(left, right)).toBe("");
    expect(layoutKey(left)).toBe(layoutKey(right));
  };

  it("fit each other whatever their block sizes, and however the same groups are written down", () => {
    same(quantized, { ...quantized, tokensPerBlock: 64 });
    same(plain, parse([{ name: "kv", kind: "kv" }]));
    same(quantized, parse([...(quantized.groups ?? [])].reverse()));
  });

  it("differ in every field that is named", () => {
    const other = parse(
      [
        { name: "full", kind: "kv", layers: [0, 1, 2] },
        { name: "local", kind: "kv", layers: [3, 4, 5], window: 64 },
        { name: "scales", kind: "scales", bytesPerToken: 64, planes: 2 },
        { name: "more", kind: "opaque", bytesPerToken: 4 },
      ],
      { dtype: "int8" },
    );
    expect(layoutKey(quantized)).not.toBe(layoutKey(other));
    expect(layoutDifferences(quantized, other).split("; ")).toEqual([
      "dtype here fp8_e4m3, there int8",
      "groups.full.layers here 0,3, there 0-2",
      "groups.local.layers here 1-2,4-5, there 3-5",
      "groups.local.window here 128, there 64",
      "groups.scales.bytesPerToken here 32, there 64",
      "groups.more.kind here none, there opaque",
    ]);
  });

  it.each([
    [{ layers: 5 }, "layers here 6, there 5"],
    [{ kvHeads: 2 }, "kvHeads here 4, there 2"],
    [{ headDim: 32 }, "headDim here 16, there 32"],
    [{ dtype: "fp8_e5m2" }, "dtype here fp8_e4m3, there fp8_e5m2"],
    [{ attention: "mla", kvHeads: 1 }, "kvHeads here 4, there 1; attention here mha or gqa, there mla"],
  ])("one of which has %j instead differ in that", (change, words) => {
    expect(layoutDifferences(plain, Layout.parse({ ...plain, ...change }))).toBe(words);
  });

  it.each([
    [{ kind: "latent" }, "kind here scales, there latent"],
    [{ layers: [0, 1, 2, 4] }, "layers here 0-5, there 0-2,4"],
    [{ headAxis: false }, "headAxis here true, there false"],
    [{ planes: 1 }, "planes here 2, there 1"],
    [{ bytesPerToken: 64 }, "bytesPerToken here 32, there 64"],
    [{ window: 9 }, "window here none, there 9"],
  ])("of which one group has %j instead differ in that", (change, words) => {
    const group = { name: "a", kind: "scales", bytesPerToken: 32, headAxis: true, planes: 2 };
    expect(layoutDifferences(parse([group]), parse([{ ...group, ...change }]))).toBe(`groups.a.${words}`);
  });

  it("with opaque bytes, or bytes of a whole block, fit only at one block size", () => {
    for (const group of [
      { name: "state", kind: "opaque", bytesPerToken: 8 },
      { name: "scales", kind: "scales", bytesPerBlock: 64 },
    ]) {
      const here = parse([{ name: "kv", kind: "kv" }, group]);
      same(here, structuredClone(here));
      expect(layoutDifferences(here, { ...here, tokensPerBlock: 32 })).toBe("tokensPerBlock here 16, there 32");
      expect(layoutKey(here)).not.toBe(layoutKey({ ...here, tokensPerBlock: 32 }));
    }
  });
});

describe("two instances", () => {
  it("of any numbers of ranks fit each other, unless opaque bytes bind them", () => {
    const opaque = parse([{ name: "state", kind: "opaque", bytesPerToken: 8 }]);
    const pair = (layout: Layout) =>
      instanceDifferences({ layout, tpSize: 2, ppSize: 1 }, { layout: structuredClone(layout), tpSize: 4, ppSize: 2 });
    expect(pair(quantized)).toBe("");
    expect(pair(opaque)).toBe("tpSize here 2, there 4; ppSize here 1, there 2");
  });
});
