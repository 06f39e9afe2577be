import type { Candidate } from "./chosen.ts";
import { PathName } from "./kvt_file.ts";
import { parseLogLevel } from "./log_level.ts";
import { didYouMean, nearest } from "./nearest.ts";
import type { Problems } from "./problems.ts";
import type { LogLevel } from "./settings.ts";

export type Env = Readonly<Record<string, string | undefined>>;
export type LegacyBackend = "NIXL" | "UCX" | "MOONCAKE" | "MPI";

/** Variables that concern this version, read and checked (S76-S97). */
export interface Environment {
  readonly logLevel: Candidate<LogLevel> | undefined;
  readonly path: Candidate<PathName> | undefined;
  readonly authToken: Candidate<string> | undefined;
  readonly socketDir: Candidate<string> | undefined;
  /** KVT_NIXL_FALLBACK; undefined when unset (S69, S70). */
  readonly nixlFallback: boolean | undefined;
  /** First of TRTLLM_USE_{NIXL,UCX,MOONCAKE,MPI}_KVCACHE that is set, in that order (S15). */
  readonly legacyBackend: Candidate<LegacyBackend> | undefined;
  /** TRTLLM_NIXL_KVCACHE_BACKEND as given. */
  readonly nixlPlugin: string | undefined;
  /** TRTLLM_KVCACHE_RECV_BUFFER_COUNT: receives at the same time (S83); 1 with TRTLLM_DISABLE_KV_CACHE_TRANSFER_OVERLAP (S84). */
  readonly receives: Candidate<number> | undefined;
  /** TRTLLM_KVCACHE_SEND_MAX_CONCURRENCY_NUM: the same for sends. */
  readonly sends: Candidate<number> | undefined;
  /** TRTLLM_DISAGG_LAYERWISE (S85). */
  readonly layerwise: Candidate<boolean> | undefined;
  /** TRTLLM_DISAGG_NO_RETRY (S90). */
  readonly noRetry: Candidate<boolean> | undefined;
}

// Read by this package, here or where they act.
const ownNames = [
  "KVT_AUTH_TOKEN",
  "KVT_CHECK",
  "KVT_CUDA_LIBRARY",
  "KVT_CUDA_SMS",
  "KVT_LOG_LEVEL",
  "KVT_METRICS",
  "KVT_NIXL_FALLBACK",
  "KVT_NIXL_LIBRARY",
  "KVT_PATH",
  "KVT_SOCKET_DIR",
  "KVT_VECTOR_LEVEL",
];

// What the addon can be told; it reads the variable itself (native/memory/vector_level.h).
const vectorLevels = ["avx512", "avx2", "neon", "generic"];

// Known, and what they are for does not exist here yet.
const notBuilt = new Set([
  "KVT_METRICS",
  "TLLM_DISAGG_INSTANCE_IDX",
  "TLLM_DISAGG_RUN_REMOTE_MPI_SESSION_CLIENT",
  "TLLM_ENABLE_CACHE_TRANSFER_PERF_INFO",
  "TLLM_KV_TRANSFER_PERF_LOG_FILE",
  "TLLM_SPAWN_PROXY_PROCESS",
  "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR",
  "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY",
  "TRTLLM_DISABLE_SELECTIVE_CACHE_TRANSFER",
  "TRTLLM_DISAGG_BENCHMARK_GEN_ONLY",
  "TRTLLM_DISAGG_COORDINATOR_RESERVATION_TIMEOUT",
  "TRTLLM_DISAGG_WEDGE_TRACE_INTERVAL_MS",
  "TRTLLM_DISAGG_WORKER_PROCESS_ID",
  "TRTLLM_KVCACHE_AWARE_ROUTER_HASH_TOKENS_PER_BLOCK",
  "TRTLLM_KVCACHE_POOL_USE_FABRIC_MEMORY",
  "TRTLLM_KVCACHE_TIME_OUTPUT_PATH",
  "TRTLLM_KVCACHE_TRANSFER_ALL_BLOCKS_FOR_WINDOW",
  "TRTLLM_KVCACHE_TRANSFER_BUFFER_SIZE",
  "TRTLLM_KV_TRANSFER_NUM_THREADS",
  "TRTLLM_NIXL_DISABLE_COALESCE",
  "TRTLLM_NIXL_ENABLE_COALESCE",
  "TRTLLM_NIXL_INTERFACE",
  "TRTLLM_NIXL_PORT",
  "TRTLLM_UCX_INTERFACE",
]);

// What they ask for is done elsewhere, is how this package always works, or is Python's own business: not worth a line.
const silent = new Set([
  "TRTLLM_DISAGG_LAYERWISE",
  "TRTLLM_NIXL_KVCACHE_BACKEND",
  "TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL",
  "TRTLLM_DISABLE_KV_CACHE_TRANSFER_OVERLAP",
  "TRTLLM_DISAGG_NO_RETRY",
  "TRTLLM_DISAGG_SERVER_DISABLE_GC",
  "TRTLLM_ENABLE_KVCACHE_RECEIVE_PARALLEL",
  "TRTLLM_KVCACHE_RECV_BUFFER_COUNT",
  "TRTLLM_KVCACHE_SEND_MAX_CONCURRENCY_NUM",
  "TRTLLM_KVCACHE_TRANSFER_USE_ASYNC_BUFFER",
  "TRTLLM_KVCACHE_TRANSFER_USE_SYNC_BUFFER",
  "TRTLLM_NIXL_BOUNCE_ENABLE",
  "TRTLLM_PARALLEL_CACHE_SEND",
  "TRTLLM_REQUEST_KV_CACHE_CONCURRENT",
  "TRTLLM_SERVER_DISABLE_GC",
  "TRTLLM_TRY_ZCOPY_FOR_KVCACHE_TRANSFER",
  "TRTLLM_USE_MOONCAKE_KVCACHE",
  "TRTLLM_USE_MPI_KVCACHE",
  "TRTLLM_USE_NIXL_KVCACHE",
  "TRTLLM_USE_UCX_KVCACHE",
]);

// Not TRTLLM_/TLLM_, but set by the same people's scripts (S96).
const listedToo = ["NCCL_GRAPH_MIXING_SUPPORT", "PROMETHEUS_MULTIPROC_DIR"];

const legacyOrder: readonly LegacyBackend[] = ["NIXL", "UCX", "MOONCAKE", "MPI"];

const text = (env: Env, name: string): string | undefined => {
  const value = env[name]?.trim();
  return value === "" ? undefined : value;
};

const candidate = <T>(name: string, value: T | undefined): Candidate<T> | undefined =>
  value === undefined ? undefined : { value, origin: `env ${name}` };

/** `1`, `true`, `yes`, `on` in any case; a word that is neither yes nor no is reported and counts as unset. */
function flag(env: Env, name: string, problems: Problems): boolean | undefined {
  const value = text(env, name)?.toLowerCase();
  if (value === undefined) return undefined;
  if (["1", "true", "yes", "on"].includes(value)) return true;
  if (["0", "false", "no", "off"].includes(value)) return false;
  problems.add("warning", name, `${JSON.stringify(value)} is neither 1 nor 0; the variable is ignored`);
  return undefined;
}

function forcedPath(env: Env, problems: Problems): PathName | undefined {
  const value = text(env, "KVT_PATH");
  if (value === undefined) return undefined;
  const parsed = PathName.safeParse(value);
  if (parsed.success) return parsed.data;
  const advice = didYouMean(value, PathName.options);
  problems.add("error", "KVT_PATH", `${value} is not one of ${PathName.options.join(", ")}${advice}`);
  return undefined;
}

function logLevel(env: Env, problems: Problems): LogLevel | undefined {
  const value = text(env, "KVT_LOG_LEVEL");
  return value === undefined ? undefined : parseLogLevel(value, "KVT_LOG_LEVEL", problems);
}

/** A count from 1 to 4096; anything else is reported and counts as unset. */
function count(env: Env, name: string, problems: Problems): Candidate<number> | undefined {
  const value = text(env, name);
  if (value === undefined) return undefined;
  const number = Number(value);
  if (Number.isInteger(number) && number >= 1 && number <= 4096) return candidate(name, number);
  problems.add("warning", name, `${JSON.stringify(value)} is no number from 1 to 4096; the variable is ignored`);
  return undefined;
}

/** How many transfers run at the same time: what the variable says, one when transfers shall not overlap. */
function transfers(env: Env, name: string, problems: Problems): Candidate<number> | undefined {
  const serial = "TRTLLM_DISABLE_KV_CACHE_TRANSFER_OVERLAP";
  return flag(env, serial, problems) ? candidate(serial, 1) : count(env, name, problems);
}

function legacyBackend(env: Env, problems: Problems): Candidate<LegacyBackend> | undefined {
  const set = legacyOrder.filter((backend) => flag(env, `TRTLLM_USE_${backend}_KVCACHE`, problems));
  const [first] = set;
  if (first === undefined) return undefined;
  const name = `TRTLLM_USE_${first}_KVCACHE`;
  if (set.length > 1) {
    problems.add("warning", name, `is used; TRTLLM_USE_${set[1]}_KVCACHE is set too and ignored: set one of them`);
  }
  return { value: first, origin: `env ${name}` };
}

function listUnused(env: Env, problems: Problems): void {
  const names = Object.keys(env).filter(
    (name) => /^T(RT)?LLM_/.test(name) || listedToo.includes(name) || (name.startsWith("KVT_") && notBuilt.has(name)),
  );
  const set = names.filter((name) => text(env, name) !== undefined && !silent.has(name)).sort();
  const later = set.filter((name) => notBuilt.has(name));
  const never = set.filter((name) => !notBuilt.has(name));
  const parts = [
    later.length > 0 ? `not built yet: ${later.join(", ")}` : "",
    never.length > 0 ? `not used here: ${never.join(", ")}` : "",
  ].filter((part) => part !== "");
  if (parts.length > 0) {
    problems.add("warning", "", `these variables are set and have no effect (${parts.join("; ")})`);
  }
  const level = text(env, "KVT_VECTOR_LEVEL");
  if (level !== undefined && !vectorLevels.includes(level)) {
    const advice = didYouMean(level, vectorLevels);
    problems.add(
      "warning",
      "KVT_VECTOR_LEVEL",
      `${level} is not one of ${vectorLevels.join(", ")}${advice}; it is ignored`,
    );
  }
  for (const name of Object.keys(env)) {
    if (!name.startsWith("KVT_") || name.startsWith("KVT_TEST_") || ownNames.includes(name)) continue;
    const near = nearest(name, ownNames);
    problems.add("warning", name, `no such variable; ${near ? `did you mean ${near}?` : "it is ignored"}`);
  }
}

export function readEnvironment(env: Env, problems: Problems): Environment {
  listUnused(env, problems);
  return {
    logLevel: candidate("KVT_LOG_LEVEL", logLevel(env, problems)),
    path: candidate("KVT_PATH", forcedPath(env, problems)),
    authToken: candidate("KVT_AUTH_TOKEN", text(env, "KVT_AUTH_TOKEN")),
    socketDir: candidate("KVT_SOCKET_DIR", text(env, "KVT_SOCKET_DIR")),
    nixlFallback: flag(env, "KVT_NIXL_FALLBACK", problems),
    legacyBackend: legacyBackend(env, problems),
    nixlPlugin: text(env, "TRTLLM_NIXL_KVCACHE_BACKEND"),
    receives: transfers(env, "TRTLLM_KVCACHE_RECV_BUFFER_COUNT", problems),
    sends: transfers(env, "TRTLLM_KVCACHE_SEND_MAX_CONCURRENCY_NUM", problems),
    layerwise: candidate("TRTLLM_DISAGG_LAYERWISE", flag(env, "TRTLLM_DISAGG_LAYERWISE", problems)),
    noRetry: candidate("TRTLLM_DISAGG_NO_RETRY", flag(env, "TRTLLM_DISAGG_NO_RETRY", problems)),
  };
}
