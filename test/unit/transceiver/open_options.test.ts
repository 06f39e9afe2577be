import { describe, expect, it } from "vitest";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { resolveOptions } from "../../../src/transceiver/open_options.ts";
import { openPaths } from "../../../src/transceiver/open_paths.ts";

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

  it("plain pointers are refused as not provided, with what to do instead", () => {
    const refusal = { code: "NOT_PROVIDED", remedy: expect.stringMatching(/memfd_create/) };
    expect(() => resolve({ pool: { adopt: [{ address: 4096, bytes: 1 }], blocks: 4 } })).toThrow(
      expect.objectContaining(refusal),
    );
  });

  it("a pool on a GPU is named by its number, and KVT_CUDA_SMS bounds what a transfer fills of it", () => {
    const onGpu = (memory: string, env: NodeJS.ProcessEnv = {}) =>
      resolveOptions({ layout, pool: { memory, blocks: 4 } } as OpenOptions, env).gpu;
    expect(resolve({}).gpu).toBeUndefined();
    expect(onGpu("cuda")).toEqual({ device: 0, multiprocessors: 64 });
    expect(onGpu("cuda:3", { KVT_CUDA_SMS: "16" })).toEqual({ device: 3, multiprocessors: 16 });
    expect(() => onGpu("cuda:0", { KVT_CUDA_SMS: "many" })).toThrow(/KVT_CUDA_SMS=many/);
    expect(() => onGpu("cuda:zero")).toThrow(/"host" or "cuda:0"/);
  });

  it("a pool on a GPU has path cuda_peer and no other, and a pool of the host has not that one", async () => {
    const gpu = { pool: { memory: "cuda:0", blocks: 4 } };
    expect(await openPaths(resolve(gpu))).toEqual({
      plane: { sharedMemory: false, gpu: { device: 0, multiprocessors: 64 } },
      names: ["cuda_peer"],
      degraded: null,
    });
    await expect(openPaths(resolve({ ...gpu, path: "nixl_direct" }))).rejects.toMatchObject({ code: "NOT_PROVIDED" });
    await expect(openPaths(resolve({ ...gpu, sameHost: false }))).rejects.toMatchObject({ code: "NOT_PROVIDED" });
    await expect(openPaths(resolve({ path: "cuda_peer" }))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });

  it.each([
    [{ pool: { memory: "host" } }, /options\.pool.*memory: "host" or "cuda:0", blocks/],
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
