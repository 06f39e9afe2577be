import { describe, expect, it } from "vitest";
import { isFatal, type Problem, renderProblem } from "../../../src/config/problems.ts";
import { defaultWorkerSettings, resolveWorker, type WorkerSources } from "../../../src/config/worker_settings.ts";
import { example, seed, written } from "./written_file.ts";

type Options = Omit<WorkerSources, "model" | "configFile">;

function resolve(yaml: string, options: Options = {}) {
  return resolveWorker({ model: "models/tiny.gguf", configFile: written(yaml), ...options });
}

/** All problems as `line:column kind key: text`, without the file's name. */
const told = (problems: readonly Problem[]): string[] =>
  problems.map(
    ({ place, kind, key, text }) => `${place ? `${place.line}:${place.column} ` : ""}${kind} ${key}: ${text}`,
  );

const fatal = (yaml: string, options?: Options): string[] => told(resolve(yaml, options).problems.fatal);
const mild = (yaml: string, options?: Options): string[] => told(resolve(yaml, options).problems.mild);

const transceiver = (line: string): string => `cache_transceiver_config:\n  backend: UCX\n  ${line}\n`;

describe("the seed's worker files", () => {
  it.each(["ctx_config.yaml", "gen_config.yaml"])("%s starts a worker without a word", (name) => {
    const { settings, problems } = resolveWorker({ model: "m.gguf", configFile: seed(name) });
    expect(problems.fatal).toEqual([]);
    expect(problems.mild.filter(({ kind }) => kind === "warning")).toEqual([]);
    expect(settings.transceiver).toMatchObject({
      backend: "UCX",
      maxTokensInBuffer: 2048,
      kvTransferTimeoutMs: 60_000,
    });
  });

  it.each(["context_config_nixl.yml", "gen_config_nixl.yml"])("%s is valid, and NIXL is demanded", (name) => {
    const { settings, problems } = resolveWorker({ model: "m.gguf", configFile: seed(name) });
    expect(problems.fatal).toEqual([]);
    expect(settings.transceiver).toMatchObject({ backend: "NIXL", maxTokensInBuffer: 2048 });
  });

  it.each(["ctx_config.yaml", "gen_config.yaml"])("examples/basic/%s says the same as the seed's", (name) => {
    const of = (configFile: string) => resolveWorker({ model: "m.gguf", configFile }).settings;
    expect(of(example(name))).toEqual(of(seed(name)));
  });
});

describe("backend", () => {
  it.each([
    ["", null],
    ["cache_transceiver_config:\n", null],
    ["cache_transceiver_config: {backend: null, max_tokens_in_buffer: 64}", null],
    ["cache_transceiver_config: {backend: DEFAULT}", "DEFAULT"],
    ["cache_transceiver_config: {backend: UCX}", "UCX"],
    ["cache_transceiver_config: {backend: ucx}", "UCX"],
    ["cache_transceiver_config: {backend: MPI}", "UCX"],
    ["cache_transceiver_config: {backend: NIXL}", "NIXL"],
  ])("%j gives %j", (yaml, backend) => {
    const { settings, problems } = resolve(yaml);
    expect(problems.fatal).toEqual([]);
    expect(settings.transceiver?.backend ?? null).toBe(backend);
  });

  it("warns about lower case and about MPI, and refuses MOONCAKE and unknown names", () => {
    expect(mild("cache_transceiver_config: {backend: ucx}")).toContainEqual(
      "1:37 warning cache_transceiver_config.backend: backend names are upper case: write UCX",
    );
    expect(mild("cache_transceiver_config: {backend: MPI}")[0]).toContain("MPI is deprecated");
    expect(fatal("cache_transceiver_config: {backend: MOONCAKE}")[0]).toContain("not provided; use NIXL");
    expect(fatal("cache_transceiver_config: {backend: nixxl}")).toEqual([
      '1:37 error cache_transceiver_config.backend: "nixxl" is not one of DEFAULT, UCX, NIXL, MOONCAKE, MPI (did you mean NIXL?)',
    ]);
  });

  it("DEFAULT asks the legacy selectors in the order NIXL, UCX, MOONCAKE, MPI", () => {
    const yaml = "cache_transceiver_config: {backend: DEFAULT}";
    const env = { TRTLLM_USE_MPI_KVCACHE: "1", TRTLLM_USE_UCX_KVCACHE: "1" };
    const { settings, problems } = resolve(yaml, { env });
    expect(settings.transceiver?.backend).toBe("UCX");
    expect(told(problems.mild)).toContainEqual(
      "warning TRTLLM_USE_UCX_KVCACHE: is used; TRTLLM_USE_MPI_KVCACHE is set too and ignored: set one of them",
    );
    expect(fatal(yaml, { env: { TRTLLM_USE_MOONCAKE_KVCACHE: "1" } })[0]).toContain("MOONCAKE is not provided");
    expect(fatal(yaml, { env: { TRTLLM_USE_NIXL_KVCACHE: "1" } })).toEqual([]);
    const ignored = resolve("cache_transceiver_config: {backend: UCX}", { env: { TRTLLM_USE_MPI_KVCACHE: "1" } });
    expect(ignored.settings.transceiver?.backend).toBe("UCX");
    expect(told(ignored.problems.mild).join()).toContain("ignored: it counts for backend DEFAULT only");
  });
});

describe("cache_transceiver_config", () => {
  it("names keys that have no effect on what there is", () => {
    const notes = mild(transceiver("kv_transfer_poll_interval_ms: 100\n  kv_cache_bounce_size_mb: 8")).join("\n");
    expect(mild(transceiver("enable_pipelined_transfer: true")).join()).toContain("schedule_style: generation_first");
    expect(notes).toContain("needs no period");
    expect(notes).toContain("no bounce region");
  });

  it("rounds max_tokens_in_buffer up to whole blocks with a note", () => {
    const { settings, problems } = resolve(transceiver("max_tokens_in_buffer: 2049"));
    expect(settings.transceiver?.maxTokensInBuffer).toBe(2080);
    expect(told(problems.mild)).toContainEqual(
      expect.stringContaining("note cache_transceiver_config.max_tokens_in_buffer: rounded up to 2080"),
    );
  });

  it("tells null from absent where null says something of its own", () => {
    const timeout = resolve(transceiver("kv_transfer_timeout_ms: null"));
    expect(timeout.settings.transceiver?.kvTransferTimeoutMs).toBeNull();
    expect(told(timeout.problems.mild).join()).toContain("may take for ever");
    const future = resolve(transceiver("kv_transfer_sender_future_timeout_ms: null"));
    expect(future.settings.transceiver?.kvTransferSenderFutureTimeoutMs).toBe(1_000);
  });

  it.each([
    ["kv_transfer_timeout_ms: 0", "must be at least 1, got 0"],
    ["kv_transfer_timeout_ms: 1.5", "must be an integer, got 1.5"],
    ['kv_transfer_timeout_ms: "8000"', '"8000" is a string; write 8000 without quotes'],
    ["max_tokens_in_buffer: -1", "must be at least 1, got -1"],
    ["max_tokens_in_buffer: 1e400", "must be a number, got Infinity"],
    ["transceiver_runtime: RUST", "is not one of CPP, PYTHON, auto"],
    ["enable_pipelined_transfer: yes", 'write true, not "yes"'],
    ["kv_transfer_timeout: 3", "unknown key of cache_transceiver_config; did you mean kv_transfer_timeout_ms?"],
    ["quite_another_thing: 3", "unknown key of cache_transceiver_config; known keys: backend, "],
  ])("refuses %s", (line, words) => {
    const problems = fatal(transceiver(line));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(/^3:\d+ /);
    expect(problems[0]).toContain(words);
  });

  it("takes old names with one warning each, and refuses old and new with different values", () => {
    const { settings, problems } = resolve(transceiver("max_num_tokens: 64"));
    expect(settings.transceiver?.maxTokensInBuffer).toBe(64);
    expect(told(problems.mild)).toContainEqual(
      "3:3 warning cache_transceiver_config.max_num_tokens: is an old name: write max_tokens_in_buffer",
    );
    expect(fatal(transceiver("max_num_tokens: 64\n  max_tokens_in_buffer: 32"))[0]).toContain("different values");
    expect(fatal(transceiver("max_num_tokens: 64\n  max_tokens_in_buffer: 64"))).toEqual([]);
  });

  it("gives a wrong value under an old name the place where it stands", () => {
    expect(fatal(transceiver('max_num_tokens: "64"'))).toEqual([
      '3:19 error cache_transceiver_config.max_tokens_in_buffer: "64" is a string; write 64 without quotes',
    ]);
  });
});

describe("the worker file", () => {
  it("reports several mistakes in one start, in the order of the file", () => {
    const problems = fatal("max_batch_size: 0\nkv_cache_config:\n  dtype: fp9\nport: 1\ncache_transceiver_config: 7\n");
    expect(problems.map((text) => text.split(" ")[0])).toEqual(["1:17", "3:10", "4:1", "5:27"]);
  });

  it("accepts TensorRT-LLM's other arguments with one warning that lists them all", () => {
    const yaml = "cuda_graph_config: {batch_sizes: [1]}\nmoe_config: {}\nkv_cache_config: {host_cache_size: 1}\n";
    expect(fatal(yaml)).toEqual([]);
    expect(mild(yaml)).toEqual([
      "1:1 warning : accepted, without effect here: cuda_graph_config, moe_config, kv_cache_config.host_cache_size",
    ]);
  });

  it("refuses a key that is nobody's, with the nearest name", () => {
    expect(fatal("disable_overlap_sheduler: true\n")).toEqual([
      "1:1 error disable_overlap_sheduler: unknown key; did you mean disable_overlap_scheduler?",
    ]);
    expect(fatal("zzz: 1\n")).toEqual(["1:1 error zzz: unknown key; remove it"]);
  });

  it("warns where a duration looks like the wrong unit", () => {
    expect(mild(transceiver("kv_transfer_timeout_ms: 5"))).toContainEqual(
      "3:27 warning cache_transceiver_config.kv_transfer_timeout_ms: 5 ms is very short: is it meant in seconds? Write 5000",
    );
    expect(mild(transceiver("kv_transfer_timeout_ms: 86400001")).join()).toContain("more than a day");
    expect(mild(transceiver("kv_transfer_timeout_ms: 86400000")).join()).not.toContain("more than a day");
    expect(mild(transceiver("kv_transfer_timeout_ms: 10")).join()).not.toContain("very short");
  });

  it.each([
    ["context_parallel_size: 2", "not built"],
    ["max_beam_width: 4", "no beam search"],
    ["kv_cache_config: {max_attention_window: [256]}", "not built yet"],
    ["kv_cache_config: {dtype: fp8}", "float32 or bfloat16, not fp8"],
    ['disagg_cluster: {cluster_uri: "http://localhost:8000"}', "not built yet"],
  ])("refuses %s with a sentence that says what is missing", (yaml, words) => {
    const { problems } = resolve(yaml);
    expect(problems.fatal.map(({ kind }) => kind)).toEqual(["not_built"]);
    expect(problems.fatal[0]?.text).toContain(words);
    expect(problems.fatal[0]?.place?.line).toBe(1);
  });

  it("takes the sizes of an instance from the file, or from trtllm-serve's flags", () => {
    const { settings, problems } = resolve("tensor_parallel_size: 4\npipeline_parallel_size: 2");
    expect(problems.fatal).toEqual([]);
    expect([settings.tensorParallelSize, settings.pipelineParallelSize]).toEqual([4, 2]);
    const flags = {
      tensor_parallel_size: { value: 2, origin: "--tp_size" },
      pipeline_parallel_size: { value: 3, origin: "--pp_size" },
    };
    const flagged = resolve("", { flags }).settings;
    expect([flagged.tensorParallelSize, flagged.pipelineParallelSize]).toEqual([2, 3]);
  });

  it("takes the layers of each stage from pp_partition, one number for each stage", () => {
    const right = resolve("pipeline_parallel_size: 3\npp_partition: [5, 1, 4]");
    expect(right.problems.fatal).toEqual([]);
    expect(right.settings.ppPartition).toEqual([5, 1, 4]);
    const { fatal } = resolve("pipeline_parallel_size: 2\npp_partition: [5, 1, 4]").problems;
    expect(fatal).toMatchObject([{ kind: "error", place: { line: 2 } }]);
    expect(fatal[0]?.text).toMatch(/3 stages; pipeline_parallel_size is 2/);
    expect(resolve("pp_partition: [0]").problems.fatal).toHaveLength(1);
    expect(resolve("").settings.ppPartition).toBeNull();
  });

  it("accepts all of these at their defaults", () => {
    const yaml = `tensor_parallel_size: 1
max_beam_width: 1
return_perf_metrics: false
perf_metrics_max_requests: 0
disable_overlap_scheduler: false
backend: pytorch
kv_cache_config: {event_buffer_max_size: 0, max_attention_window: null, dtype: auto, free_gpu_memory_fraction: 1.0}
disagg_cluster:
`;
    expect(fatal(yaml)).toEqual([]);
  });

  it("reuses parts of blocks unless that is switched off", () => {
    const reuses = (yaml: string): boolean => resolve(yaml).settings.kvCache.enablePartialReuse;
    expect([reuses(""), reuses("kv_cache_config: {enable_partial_reuse: false}")]).toEqual([true, false]);
  });

  it("leaves the size of the KV event buffer open unless it is written", () => {
    const size = (yaml: string): number | null => resolve(yaml).settings.kvCache.eventBufferMaxSize;
    expect(size("")).toBeNull();
    expect(size("kv_cache_config: {event_buffer_max_size: 0}")).toBe(0);
    expect(size("kv_cache_config: {event_buffer_max_size: 16}")).toBe(16);
  });

  it.each(["0", "1.01", "-0.1"])("refuses free_gpu_memory_fraction %s", (value) => {
    expect(fatal(`kv_cache_config: {free_gpu_memory_fraction: ${value}}`)).toHaveLength(1);
  });

  it("says so when the file can't be read", () => {
    const { problems } = resolveWorker({ model: "m", configFile: "/nowhere/x.yaml" });
    expect(told(problems.fatal)).toEqual(["error : /nowhere/x.yaml can't be read: there is no such file"]);
  });
});

describe("disagg_cluster", () => {
  const cluster = (lines: string): string => `disagg_cluster:\n  cluster_uri: etcd://a:2379\n${lines}`;

  it.each([
    ["disagg_cluster:\n  cluster_uri: ftp://x\n", "write http://host:port"],
    [cluster("  heartbeat_interval_sec: 5\n  inactive_timeout_sec: 5\n"), "must be longer than heartbeat_interval_sec"],
    [cluster("  heartbeat_intervall_sec: 5\n"), "did you mean heartbeat_interval_sec?"],
    ["disagg_cluster:\n  cluster_name: x\n", "cluster_uri: is required"],
  ])("is checked before it is refused: %j", (yaml, words) => {
    expect(fatal(yaml).join("\n")).toContain(words);
  });

  it("takes the seed's inactive_interval_sec, and warns below two heartbeats", () => {
    const { problems } = resolve(cluster("  inactive_interval_sec: 7\n"));
    expect(told(problems.mild).join("\n")).toContain("is an old name: write inactive_timeout_sec");
    expect(told(problems.mild).join("\n")).toContain("below two heartbeats (10)");
    expect(problems.fatal.map(({ kind }) => kind)).toEqual(["not_built"]);
  });
});

describe("precedence and origin", () => {
  it("is default < environment < flag < file for a worker", () => {
    const file = "max_batch_size: 7\n";
    const flags = {
      max_batch_size: { value: 9, origin: "--max-batch-size" },
      log_level: { value: "warn", origin: "-l" },
    } as const;
    const env = { KVT_LOG_LEVEL: "debug" };
    const { settings, effective } = resolve(file, { flags, env });
    expect([settings.maxBatchSize, settings.logLevel]).toEqual([7, "warn"]);
    const origins = new Map(effective.map(({ key, origin }) => [key, origin]));
    expect(origins.get("max_batch_size")).toMatch(/file\.yaml:1$/);
    expect(origins.get("log_level")).toBe("-l");
    expect(origins.get("max_num_tokens")).toBe("default");
    expect(resolve("", { env }).settings.logLevel).toBe("debug");
    expect(resolve("", { flags }).settings.maxBatchSize).toBe(9);
  });

  it("never shows the cluster secret", () => {
    const { settings, effective } = resolve("", { env: { KVT_AUTH_TOKEN: "s3cret" } });
    expect(settings.authToken).toBe("s3cret");
    expect(JSON.stringify(effective)).not.toContain("s3cret");
  });

  it("has defaults that need no file", () => {
    expect(defaultWorkerSettings("/models/a.b.gguf")).toMatchObject({
      servedModelName: "a.b",
      host: "localhost",
      port: 8000,
      transceiver: null,
      kvCache: { tokensPerBlock: 32, dtype: "auto", freeMemoryFraction: 0.9 },
      lease: { leaseMs: 10_000, stallMs: 20_000, strict: false },
    });
  });
});

describe("--kvt_config", () => {
  const withKvt = (yaml: string, env = {}) => resolve("", { kvtConfigFile: written(yaml, "kvt.yaml"), env });

  it("gives lease, control and transfer", () => {
    const { settings, problems } = withKvt(
      "lease: {leaseMs: 1000, strict: true}\ncontrol: {host: 0.0.0.0, port: 9000}\ntransfer: {path: shared_memory, verify: full}\n",
    );
    expect(problems.all).toEqual([]);
    expect(settings.lease).toEqual({ leaseMs: 1000, stallMs: 2000, strict: true });
    expect(settings.transfer).toMatchObject({ path: "shared_memory", sameHost: true, verify: "full" });
    const other = withKvt("transfer: {path: nixl_direct, same_host: false}").settings.transfer;
    expect(other).toMatchObject({ path: "nixl_direct", sameHost: false });
    expect(settings.control).toEqual({ host: "0.0.0.0", port: 9000, tls: null });
  });

  it("has two staging slots, or as many as TensorRT-LLM's count of buffers or the file says", () => {
    const slots = (yaml: string, env = {}) => withKvt(yaml, env).settings.transfer.stagingSlots;
    const env = { TRTLLM_KVCACHE_RECV_BUFFER_COUNT: "3" };
    expect([slots("{}"), slots("{}", env), slots("transfer: {staging_slots: 5}")]).toEqual([2, 3, 5]);
  });

  it.each([
    ["transfer: {path: cuda_peer}", "not built yet"],
    ["transfer: {verify: true}", "verify"],
    ["upstreams: {'h:1': {engine: vllm}}", "not built yet"],
    ["lease: {leasems: 5}", "did you mean leaseMs?"],
    ["control: {tls: {cert: /nowhere, key: /nowhere}}", "can't be read: ENOENT"],
  ])("refuses %s", (yaml, words) => {
    const [first] = withKvt(yaml).problems.fatal;
    expect(first && renderProblem(first)).toContain(words);
  });

  it("reads the PEM files of control.tls", () => {
    const [cert, key] = [written("CERT", "c.pem"), written("KEY", "k.pem")];
    expect(withKvt(`control: {tls: {cert: ${cert}, key: ${key}}}`).settings.control.tls).toEqual({
      cert: "CERT",
      key: "KEY",
      ca: null,
    });
  });

  it("wins over KVT_PATH", () => {
    expect(withKvt("transfer: {path: shared_memory}", { KVT_PATH: "cuda_peer" }).problems.fatal).toEqual([]);
    expect(withKvt("", { KVT_PATH: "cuda_peer" }).problems.fatal[0]?.text).toContain("not built yet");
  });
});

describe("flags of a worker", () => {
  const flag = <T>(value: T, origin: string) => ({ value, origin });

  it.each([
    [{ disagg_cluster_uri: flag("http://x:1", "--disagg_cluster_uri") }, "not built yet"],
    [{ metadata_server_config_file: flag(seed("metadata_config.yaml"), "-m") }, "not built yet"],
    [{ context_parallel_size: flag(2, "--cp_size") }, "not built"],
    [{ device: flag("cuda:0", "--device") }, "not built yet"],
    [{ port: flag(0, "--port") }, "works only with service discovery"],
    [{ chat_template: flag("/nowhere", "--chat_template") }, "neither a file nor a template"],
  ])("%j is refused", (flags, words) => {
    const found = resolveWorker({ model: "m.gguf", flags }).problems.all.filter(isFatal);
    expect(found.map(({ text }) => text).join()).toContain(words);
  });

  it("the seed's misspelt refersh_interval is taken with a warning", () => {
    const flags = { metadata_server_config_file: flag(seed("metadata_config.yaml"), "-m") };
    const { problems } = resolveWorker({ model: "m.gguf", flags });
    expect(told(problems.mild).join()).toContain("write refresh_interval");
    expect(problems.fatal).toHaveLength(1);
  });
});
