import { closeSync, openSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadNative } from "../../../src/native/loader.ts";
import type { NativeDataPlane, NativeDataPlaneOptions } from "../../../src/native/plane_binding.ts";
import { nativeLayout as layout } from "./peer.ts";

const good: NativeDataPlaneOptions = { layout, blocks: 8, epoch: "00000000000000aa", check: true };
const open = (options: object) => loadNative().openDataPlane(options as NativeDataPlaneOptions, () => {});

const changed = (fields: object) => ({ ...good, layout: { ...layout, groups: [{ ...layout.groups[0], ...fields }] } });

/** Thrown at once, not a rejection: the call itself was wrong. */
const typeError = (message: RegExp) =>
  expect.objectContaining({ name: "TypeError", message: expect.stringMatching(message) });

describe("options that are not valid are refused by name", () => {
  const cases: readonly (readonly [string, object, RegExp])[] = [
    ["no layout", { ...good, layout: undefined }, /options\.layout must be an object/],
    ["no groups", { ...good, layout: { ...layout, groups: [] } }, /options\.layout.*1 to 16 groups/],
    ["no heads", changed({ heads: 0 }), /options\.layout\.groups\[0\]\.heads must be an integer/],
    ["layers without places", changed({ bases: Float64Array.of(0) }), /groups\[0\]\.bases must hold one offset/],
    ["half an offset", changed({ bases: Float64Array.of(0, 0.5, 1) }), /groups\[0\]\.bases must hold offsets/],
    ["layers that fall", changed({ layers: Uint32Array.of(0, 2, 1) }), /layers that don't rise/],
    ["a place outside of the pool", changed({ blockStride: 1 << 20 }), /options\.layout.*outside the pool/],
    ["two heads at one place", changed({ headStride: 0 }), /options\.layout.*overlap/],
    [
      "blocks that begin anywhere",
      { ...good, layout: { ...layout, blockBytes: 40_001 } },
      /blockBytes must be a multiple/,
    ],
    ["half a block", { ...good, blocks: 1.5 }, /options\.blocks must be an integer/],
    [
      "a pool of petabytes",
      { ...good, blocks: 4_294_967_295, layout: { ...layout, blockBytes: 2 ** 40 } },
      /options\.blocks/,
    ],
    ["a short epoch", { ...good, epoch: "aa" }, /options\.epoch must be 16 hex digits/],
    ["a relative directory", { ...good, socketDir: "here" }, /options\.socketDir must be an absolute path/],
    [
      "a plain pointer",
      { ...good, adopt: [{ address: 4096n, bytes: 1 }] },
      /options\.adopt\[0\]\.address is a plain pointer.*memfd/,
    ],
    [
      "a closed descriptor",
      { ...good, adopt: [{ fd: 1 << 20, offset: 0, bytes: 1 << 30 }] },
      /options\.adopt\[0\]\.fd is not an open/,
    ],
    [
      "memory that is too small",
      { ...good, adopt: [{ fd: 0, offset: 0, bytes: 64 }] },
      /options\.adopt doesn't hold its blocks.*outside the pool of 64 bytes/,
    ],
    ["no region", { ...good, adopt: [] }, /options\.adopt must be an array of 1 to 1024 regions/],
    [
      "half a page before another region",
      {
        ...good,
        adopt: [
          { fd: 0, offset: 0, bytes: 1 << 11 },
          { fd: 0, offset: 0, bytes: 1 << 30 },
        ],
      },
      /options\.adopt\[0\]\.bytes must be a multiple of 4096/,
    ],
    ["an odd offset", { ...good, adopt: [{ fd: 0, offset: 64, bytes: 1 << 30 }] }, /options\.adopt\[0\]\.offset/],
  ];
  for (const [name, options, message] of cases) {
    it(name, () => expect(() => open(options)).toThrow(typeError(message)));
  }

  it("memory that is no memfd, with what to do instead", async () => {
    const fd = openSync("/dev/null", "r+");
    const opening = open({ ...good, adopt: [{ fd, offset: 0, bytes: 1 << 30 }] });
    // Duplicated by the call: the caller's own is free to go.
    closeSync(fd);
    await expect(opening).rejects.toMatchObject({ code: "MEMORY_REFUSED", message: expect.stringMatching(/memfd/) });
  });

  it("a pool that no memory holds", async () => {
    const huge = { ...good, blocks: 1_000_000, layout: { ...layout, blockBytes: 2 ** 26 } };
    await expect(open(huge)).rejects.toMatchObject({
      code: "POOL_UNAVAILABLE",
      message: expect.stringMatching(/leaves/),
    });
  });

  it("a socket directory that is none", async () => {
    await expect(open({ ...good, socketDir: "/dev/null" })).rejects.toMatchObject({ code: "SOCKET_DIR_REFUSED" });
  });

  it("more layers at places that follow no rule than a peer can be told of; fewer, or such that do, are opened", async () => {
    const placed = (layers: number, at: (layer: number) => number) => {
      const one = { planes: 1, heads: 1, elementBytes: 64, headStride: 64, tokenStride: 64 };
      const bases = Float64Array.from({ length: layers }, (_, layer) => 64 * at(layer));
      const numbers = Uint32Array.from({ length: layers }, (_, layer) => layer);
      const blockBytes = 1 << 18;
      const groups = [{ ...layout.groups[0], ...one, blockStride: blockBytes, layers: numbers, bases }];
      return open({ ...good, blocks: 1, layout: { tokensPerBlock: 1, blockBytes, groups } });
    };
    const falling = (layer: number) => 4095 - layer;
    await expect(placed(4096, falling)).rejects.toMatchObject({
      code: "DESCRIPTOR_TOO_LONG",
      message: expect.stringMatching(/need \d{4} entries/),
    });
    for (const plane of [await placed(2900, falling), await placed(4096, (layer) => layer)]) await plane.close();
  });
});

describe("a plane", () => {
  let plane: NativeDataPlane;
  const table = Uint32Array.of(0);
  beforeAll(async () => {
    plane = await open(good);
  });
  afterAll(() => plane.close());

  it("names the argument that is wrong", () => {
    const call =
      (method: keyof NativeDataPlane, ...args: readonly unknown[]) =>
      () =>
        (plane[method] as (...all: readonly unknown[]) => unknown).apply(plane, [...args]);
    expect(call("post", -1, 1, table, table, 0, 1, 1, true, 1)).toThrow(typeError(/job must be an integer/));
    expect(call("post", 1, 1, [0], table, 0, 1, 1, true, 1)).toThrow(typeError(/sourceBlocks must be a Uint32Array/));
    expect(call("post", 1, 1, table, table, 0, 1, 1, true, Number.NaN)).toThrow(typeError(/deadlineMs/));
    expect(call("reach", 1, "text", 5)).toThrow(typeError(/descriptor must be a Uint8Array/));
    expect(call("renew", 1, Float64Array.of(0.5))).toThrow(typeError(/leases/));
    expect(call("grant", 2 ** 53, 1)).toThrow(typeError(/lease must be an integer/));
    expect(call("setTimer", 1)).toThrow(typeError(/atMs/));
    expect(call("findTouched", Uint32Array.of(8))).toThrow(typeError(/blocks names block 8 of a pool of 8/));
  });

  it("refuses a job id that is not quiet yet", () => {
    plane.post(1, 9, table, table, 0, 1, 1, true, Number.POSITIVE_INFINITY, 0, 0xffffffff);
    expect(() => plane.post(1, 9, table, table, 0, 1, 1, true, 1, 0, 1)).toThrow(typeError(/job 1 is not quiet yet/));
  });

  it("is told from any other object, also one that holds its methods", () => {
    expect(() => plane.stats.call({} as NativeDataPlane)).toThrow(typeError(/this is not a data plane/));
    expect(() => plane.close.call(Object.create(plane))).toThrow(typeError(/this is not a data plane/));
  });

  it("finds the first released block that somebody wrote", () => {
    const blocks = Uint32Array.of(2, 5, 7);
    plane.fillReleased(blocks);
    expect(plane.findTouched(blocks)).toBe(-1);
    const bytes = new Uint8Array(plane.memory);
    const at = 5 * plane.blockBytes + 17;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    expect(plane.findTouched(blocks)).toBe(5);
  });

  it("is closed once and for all: memory is gone, work is refused, the rest is harmless", async () => {
    const closing = await open(good);
    const memory = closing.memory;
    const first = closing.close();
    expect(memory.byteLength).toBe(0);
    expect(() => closing.grant(1, 1)).toThrow(expect.objectContaining({ code: "CLOSED" }));
    await first;
    await closing.close();
    expect(closing.memory.byteLength).toBe(0);
    expect(() => closing.span).toThrow(expect.objectContaining({ code: "CLOSED" }));
    expect(() => closing.fillReleased(table)).toThrow(expect.objectContaining({ code: "CLOSED" }));
    for (const harmless of [
      () => closing.cancel(1),
      () => closing.dropLease(1),
      () => closing.clearTimer(1),
      () => closing.releasePeer(1),
      () => closing.ref(),
      () => closing.unref(),
      () => closing.stats(),
    ]) {
      expect(harmless).not.toThrow();
    }
  });
});
