import { describe, expect, it } from "vitest";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { resolveOptions } from "../../../src/transceiver/open_options.ts";

const layout = { layers: 2, kvHeads: 1, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "mha" } as const;
const pool = { memory: "host", blocks: 4 } as const;

/** As a caller without types may give them. */
const resolve = (options: object) => resolveOptions({ layout, pool, ...options } as OpenOptions, {});

describe("options of a transceiver", () => {
  it("have the defaults of the documented configuration", () => {
    expect(resolve({})).toMatchObject({ leaseMs: 10_000, stallMs: 20_000, strict: false, transferMs: 60_000 });
    expect(resolve({ lease: { leaseMs: 500 } })).toMatchObject({ leaseMs: 500, stallMs: 1_000 });
    expect(resolve({ config: { kv_transfer_timeout_ms: null } }).transferMs).toBeNull();
  });

  it.each([
    [{ pool: { adopt: [{ address: 4096, bytes: 1 }], blocks: 4 } }, /memfd_create/],
    [{ pool: { memory: "cuda:0", blocks: 4 } }, /"host"/],
  ])("%j is refused as not provided, with what to do instead", (options, words) => {
    const refusal = { code: "NOT_PROVIDED", remedy: expect.stringMatching(words) };
    expect(() => resolve(options)).toThrow(expect.objectContaining(refusal));
  });

  it.each([
    [{ pool: { memory: "host" } }, /options\.pool.*memory: "host", blocks/],
    [{ pool: { adopt: [{ fd: 3 }], blocks: 4 } }, /options\.pool.*adopt: \[\{ fd, offset, bytes \}\]/],
    [{ pool: null }, /options\.pool/],
    [{ pool: "host" }, /options\.pool/],
    [{ layout: { ...layout, layers: 0 } }, /options\.layout\.layers/],
    [{ layout: { ...layout, attention: "mla", kvHeads: 2 } }, /options\.layout\.kvHeads.*one latent vector/],
    [{ lease: { leaseMs: 5 } }, /options\.lease\.leaseMs/],
    [{ parallel: { tpRank: 2, tpSize: 2, ppRank: 0, ppSize: 1 } }, /a rank must be below its size/],
    [{ parallel: { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1, cpSize: 2 } }, /options\.parallel\.cpSize.*must be 1/],
    [{ leaseMs: 5 }, /leaseMs/],
  ])("%j is refused by name", (options, words) => {
    expect(() => resolve(options)).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
    expect(() => resolve(options)).toThrow(words);
  });
});
