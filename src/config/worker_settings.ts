import { existsSync, readFileSync } from "node:fs";
import { basename, extname } from "node:path";
import { type Candidate, Chosen } from "./chosen.ts";
import { refuseCluster, refuseMetadataServer } from "./discovery.ts";
import { type Env, type Environment, readEnvironment } from "./environment.ts";
import { readSource, renameOldNames, takeForeign, warnAboutUnits } from "./file_rules.ts";
import { FileSection } from "./file_section.ts";
import type { Flags, WorkerFlagValues } from "./flags.ts";
import { kvtSettings } from "./kvt_settings.ts";
import { foreignKvCacheArguments, foreignLlmArguments } from "./llm_args.ts";
import { perfMetricsMaxRequests } from "./perf_metrics.ts";
import { Problems } from "./problems.ts";
import { checkSchema } from "./schema_check.ts";
import type { EffectiveValue, LogLevel, ServerRole, WorkerSettings } from "./settings.ts";
import { transceiverSettings } from "./transceiver_settings.ts";
import { type KvCacheSection, WorkerFile } from "./worker_file.ts";
import { dotted, type YamlSource } from "./yaml_source.ts";

export interface WorkerSources {
  readonly model: string;
  readonly flags?: Flags<WorkerFlagValues>;
  /** `--config` */
  readonly configFile?: string;
  /** `--kvt_config` */
  readonly kvtConfigFile?: string;
  readonly env?: Env;
}

export interface Resolved<Settings> {
  /** Usable only when `problems.fatal` is empty. */
  readonly settings: Settings;
  readonly effective: readonly EffectiveValue[];
  readonly problems: Problems;
}

const DEFAULT_TOKENS_PER_BLOCK = 32;
const MIB = 1 << 20;

/** Reads and checks a worker file without resolving it: undefined when it is wrong. */
export function parseWorkerFile(source: YamlSource, problems: Problems): WorkerFile | undefined {
  renameOldNames(source, problems);
  const foreign = [
    ...takeForeign(source, [], foreignLlmArguments),
    ...takeForeign(source, ["kv_cache_config"], foreignKvCacheArguments),
  ];
  const [first] = foreign;
  if (first) {
    const names = foreign.map(dotted).join(", ");
    problems.add("warning", "", `accepted, without effect here: ${names}`, source.placeOfKey(first));
  }
  warnAboutUnits(source, problems);
  return checkSchema(WorkerFile, source, problems);
}

/** Everything `kvt serve` was given, checked and merged by S10: default < environment < flag < file. Never throws. */
export function resolveWorker(sources: WorkerSources): Resolved<WorkerSettings> {
  const problems = new Problems();
  const chosen = new Chosen(["env", "flag", "file"]);
  const flags = sources.flags ?? {};
  const environment = readEnvironment(sources.env ?? {}, problems);
  const source = sources.configFile === undefined ? undefined : readSource(sources.configFile, problems);
  const file = new FileSection<WorkerFile>(source ? parseWorkerFile(source, problems) : undefined, source, []);

  refuseUnbuilt(file, flags, chosen, problems);
  const kvCache = kvCacheSettings(file.section("kv_cache_config"), flags, chosen, problems);
  const ranks = (key: "tensor_parallel_size" | "pipeline_parallel_size"): number =>
    chosen.pick<number>(key, 1, { flag: flags[key], file: file.value(key) });
  const limit = <T>(key: "max_batch_size" | "max_num_tokens" | "max_seq_len", fallback: T): number | T =>
    chosen.pick<number | T>(key, fallback, { flag: flags[key], file: file.value(key) });
  chosen.pick<boolean>("disable_overlap_scheduler", false, { file: file.value("disable_overlap_scheduler") });

  const settings: WorkerSettings = {
    model: sources.model,
    servedModelName: chosen.pick<string>("served_model_name", stemOf(sources.model), {
      flag: flags.served_model_name,
    }),
    strictModel: chosen.pick<boolean>("strict_model", false, { flag: flags.strict_model }),
    chatTemplate: chatTemplate(flags.chat_template, chosen, problems),
    host: chosen.pick<string>("host", "localhost", { flag: flags.host }),
    port: port(flags, chosen, problems),
    role: chosen.pick<ServerRole | null>("server_role", null, { flag: flags.server_role }),
    logLevel: chosen.pick<LogLevel>("log_level", "info", { env: environment.logLevel, flag: flags.log_level }),
    transceiver: transceiverSettings(
      file.section("cache_transceiver_config"),
      environment,
      kvCache.tokensPerBlock,
      chosen,
      problems,
    ),
    kvCache,
    tensorParallelSize: ranks("tensor_parallel_size"),
    pipelineParallelSize: ranks("pipeline_parallel_size"),
    ppPartition: ppPartition(file, ranks("pipeline_parallel_size"), chosen, problems),
    maxBatchSize: limit("max_batch_size", 64),
    maxNumTokens: limit("max_num_tokens", 8192),
    maxSeqLen: limit("max_seq_len", null),
    enableChunkedPrefill: chosen.pick<boolean>("enable_chunked_prefill", false, {
      flag: flags.enable_chunked_prefill,
      file: file.value("enable_chunked_prefill"),
    }),
    maxQueueSize: chosen.pick<number>("max_queue_size", 1024, { flag: flags.max_queue_size }),
    maxBodyBytes: MIB * chosen.pick<number>("max_body_mb", 64, { flag: flags.max_body_mb }),
    perfMetricsMaxRequests: perfMetricsMaxRequests(file, chosen, problems, "worker"),
    ...kvtSettings(sources.kvtConfigFile, environment, chosen, problems),
    authToken: authToken(environment, chosen),
    socketDir: chosen.pick<string | null>("socket_dir", null, { env: environment.socketDir }),
  };
  return { settings, effective: chosen.values, problems };
}

/** Settings of a worker that got nothing but a model. */
export function defaultWorkerSettings(model: string): WorkerSettings {
  return resolveWorker({ model }).settings;
}

/** The cluster secret; the list of effective values says only that there is one. */
export function authToken(environment: Environment, chosen: Chosen): string | null {
  const token = environment.authToken;
  chosen.pick<string | null>("auth_token", null, { env: token && { value: "(set)", origin: token.origin } });
  return token?.value ?? null;
}

const stemOf = (model: string): string => basename(model, extname(model)) || model;

function port(flags: Flags<WorkerFlagValues>, chosen: Chosen, problems: Problems): number {
  const value = chosen.pick<number>("port", 8000, { flag: flags.port });
  if (value === 0 && !flags.disagg_cluster_uri) {
    problems.add("error", "--port", "0 (a free port) works only with service discovery: nobody would find the worker");
  }
  return value;
}

function chatTemplate(flag: Candidate<string> | undefined, chosen: Chosen, problems: Problems): string | null {
  const given = chosen.pick<string | null>("chat_template", null, { flag });
  if (given === null || given.includes("{{") || given.includes("{%")) return given;
  if (existsSync(given)) return readFileSync(given, "utf8");
  problems.add("error", "--chat_template", `${given} is neither a file nor a template`);
  return null;
}

const dtypes = { auto: "auto", float32: "f32", bfloat16: "bf16" } as const;

function kvCacheSettings(
  section: FileSection<KvCacheSection>,
  flags: Flags<WorkerFlagValues>,
  chosen: Chosen,
  problems: Problems,
): WorkerSettings["kvCache"] {
  const name = (key: keyof KvCacheSection): string => section.name(key);
  const dtype = chosen.pick<NonNullable<KvCacheSection["dtype"]>>(name("dtype"), "auto", {
    file: section.value("dtype"),
  });
  const engineDtype = dtype in dtypes ? dtypes[dtype as keyof typeof dtypes] : undefined;
  if (engineDtype === undefined) {
    section.report(problems, "not_built", "dtype", `the engine keeps KV as float32 or bfloat16, not ${dtype}`);
  }
  if (section.has("max_attention_window")) {
    section.report(problems, "not_built", "max_attention_window", "sliding-window attention is not built yet");
  }
  return {
    enableBlockReuse: chosen.pick<boolean>(name("enable_block_reuse"), true, {
      file: section.value("enable_block_reuse"),
    }),
    enablePartialReuse: chosen.pick<boolean>(name("enable_partial_reuse"), true, {
      file: section.value("enable_partial_reuse"),
    }),
    eventBufferMaxSize: chosen.pick<number | null>(name("event_buffer_max_size"), null, {
      file: section.value("event_buffer_max_size"),
    }),
    tokensPerBlock: chosen.pick<number>(name("tokens_per_block"), DEFAULT_TOKENS_PER_BLOCK, {
      file: section.value("tokens_per_block"),
    }),
    dtype: engineDtype ?? "auto",
    freeMemoryFraction: chosen.pick<number>(name("free_gpu_memory_fraction"), 0.9, {
      flag: flags.free_gpu_memory_fraction,
      file: section.value("free_gpu_memory_fraction"),
    }),
    maxTokens: chosen.pick<number | null>(name("max_tokens"), null, { file: section.value("max_tokens") }),
  };
}

/** The model's layers are counted when it has been read. */
function ppPartition(
  file: FileSection<WorkerFile>,
  stages: number,
  chosen: Chosen,
  problems: Problems,
): readonly number[] | null {
  const partition = chosen.pick<readonly number[] | null>("pp_partition", null, { file: file.value("pp_partition") });
  if (partition !== null && partition.length !== stages) {
    const text = `it names the layers of ${partition.length} stages; pipeline_parallel_size is ${stages}`;
    file.report(problems, "error", "pp_partition", text);
  }
  return partition;
}

/** Known, right, and not there yet: each gets a sentence (never silence). */
function refuseUnbuilt(
  file: FileSection<WorkerFile>,
  flags: Flags<WorkerFlagValues>,
  chosen: Chosen,
  problems: Problems,
): void {
  const contextParallel = chosen.pick<number>("context_parallel_size", 1, {
    flag: flags.context_parallel_size,
    file: file.value("context_parallel_size"),
  });
  if (contextParallel > 1) {
    const text = `${contextParallel} ranks that share a sequence's tokens (context parallelism) are not built; write 1`;
    if (file.has("context_parallel_size")) file.report(problems, "not_built", "context_parallel_size", text);
    else problems.add("not_built", flags.context_parallel_size?.origin ?? "context_parallel_size", text);
  }
  const beams = chosen.pick<number>("max_beam_width", 1, {
    flag: flags.max_beam_width,
    file: file.value("max_beam_width"),
  });
  if (beams > 1) {
    problems.add("not_built", "max_beam_width", "the engine has no beam search; write 1", file.place("max_beam_width"));
  }
  const backend = chosen.pick<string>("backend", "reference", {
    flag: flags.backend,
    file: file.value("backend"),
  });
  if (backend !== "reference") {
    problems.add("note", "backend", `${backend} is accepted; the engine is always "reference"`, file.place("backend"));
  }
  refuseCluster(file.section("disagg_cluster"), problems);
  const withCluster = file.has("disagg_cluster") || flags.disagg_cluster_uri !== undefined;
  refuseMetadataServer(flags.metadata_server_config_file, withCluster, problems);
  const flagTexts: readonly (readonly [keyof WorkerFlagValues, string])[] = [
    ["disagg_cluster_uri", "service discovery is not built yet; list this worker's url in the router file"],
    ["otlp_traces_endpoint", "tracing is not built yet"],
  ];
  for (const [name, text] of flagTexts) {
    const flag = flags[name];
    if (flag) problems.add("not_built", flag.origin, text);
  }
  if (flags.device && flags.device.value !== "cpu") {
    problems.add(
      "not_built",
      flags.device.origin,
      `${flags.device.value}: engines on a GPU are not built yet; use cpu`,
    );
  }
  if (flags.server_role?.value === "MM_ENCODER") {
    problems.add("not_built", flags.server_role.origin, "MM_ENCODER: there is no multimodal encoder");
  }
}
