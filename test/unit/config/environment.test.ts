import { describe, expect, it } from "vitest";
import { type Env, readEnvironment } from "../../../src/config/environment.ts";
import { Problems } from "../../../src/config/problems.ts";

function read(env: Env) {
  const problems = new Problems();
  return {
    ...readEnvironment(env, problems),
    told: problems.all.map(({ kind, key, text }) => `${kind} ${key}: ${text}`),
  };
}

describe("environment variables", () => {
  it("lists TRTLLM_* and TLLM_* that have no effect once, split into not built yet and never used", () => {
    const { told } = read({
      TRTLLM_NIXL_KVCACHE_BACKEND: "UCX",
      TRTLLM_DISAGG_WORKER_PROCESS_ID: "1",
      TRTLLM_SOMETHING_ELSE: "1",
      TLLM_DISABLE_MPI: "1",
      NCCL_GRAPH_MIXING_SUPPORT: "0",
      TRTLLM_SERVER_DISABLE_GC: "1",
      TRTLLM_USE_UCX_KVCACHE: "0",
      TRTLLM_EMPTY: "",
      UCX_TLS: "all",
      HOME: "/root",
    });
    expect(told).toEqual([
      "warning : these variables are set and have no effect (not built yet: TRTLLM_DISAGG_WORKER_PROCESS_ID; " +
        "not used here: NCCL_GRAPH_MIXING_SUPPORT, TLLM_DISABLE_MPI, TRTLLM_SOMETHING_ELSE)",
    ]);
  });

  it("takes 1, true, yes and on as yes, and says when a word is neither", () => {
    for (const word of ["1", "true", "YES", "on"]) expect(read({ KVT_NIXL_FALLBACK: word }).nixlFallback).toBe(true);
    for (const word of ["0", "false", "No", "off"]) expect(read({ KVT_NIXL_FALLBACK: word }).nixlFallback).toBe(false);
    const odd = read({ KVT_NIXL_FALLBACK: "perhaps" });
    expect(odd.nixlFallback).toBeUndefined();
    expect(odd.told[0]).toContain("neither 1 nor 0");
  });

  it("bounds transfers at the same time by TensorRT-LLM's variables, and runs one after another when they shall not overlap", () => {
    const both = { TRTLLM_KVCACHE_RECV_BUFFER_COUNT: "2", TRTLLM_KVCACHE_SEND_MAX_CONCURRENCY_NUM: "3" };
    const { receives, sends, told } = read({ ...both, TRTLLM_PARALLEL_CACHE_SEND: "1" });
    expect([receives?.value, sends?.value, told]).toEqual([2, 3, []]);
    const serial = read({ ...both, TRTLLM_DISABLE_KV_CACHE_TRANSFER_OVERLAP: "1" });
    expect([serial.receives?.value, serial.sends?.value]).toEqual([1, 1]);
    for (const bad of ["0", "1.5", "many", "5000"]) {
      const odd = read({ TRTLLM_KVCACHE_RECV_BUFFER_COUNT: bad });
      expect(odd.receives).toBeUndefined();
      expect(odd.told[0]).toContain("no number from 1 to 4096");
    }
  });

  it("knows whether KV goes layer by layer", () => {
    expect(read({ TRTLLM_DISAGG_LAYERWISE: "1" })).toMatchObject({ layerwise: { value: true }, told: [] });
    expect(read({}).layerwise).toBeUndefined();
  });

  it("warns about a KVT_ name that does not exist, but not about test hooks", () => {
    expect(read({ KVT_SOCKETDIR: "/x", KVT_TEST_ANYTHING: "1" }).told).toEqual([
      "warning KVT_SOCKETDIR: no such variable; did you mean KVT_SOCKET_DIR?",
    ]);
  });

  it("knows the vector levels, and says which there are when a word is none", () => {
    expect(read({ KVT_VECTOR_LEVEL: "avx2" }).told).toEqual([]);
    expect(read({ KVT_VECTOR_LEVEL: "avx" }).told).toEqual([
      "warning KVT_VECTOR_LEVEL: avx is not one of avx512, avx2, neon, generic (did you mean avx2?); it is ignored",
    ]);
  });

  it("refuses values that are none, with the nearest", () => {
    expect(read({ KVT_PATH: "shared_memroy" }).told[0]).toContain("did you mean shared_memory?");
    expect(read({ KVT_LOG_LEVEL: "inf" }).told[0]).toContain("did you mean info?");
    expect(read({ KVT_LOG_LEVEL: "WARNING" }).logLevel?.value).toBe("warn");
  });
});
