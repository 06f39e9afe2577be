import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { Chosen } from "./chosen.ts";
import { refuseCluster, refuseMetadataServer } from "./discovery.ts";
import { type Env, readEnvironment } from "./environment.ts";
import { readSource, renameOldNames, takeForeign, warnAboutUnits } from "./file_rules.ts";
import { FileSection } from "./file_section.ts";
import type { Flags, RouterFlagValues } from "./flags.ts";
import { foreignKvCacheArguments, foreignLlmArguments } from "./llm_args.ts";
import { perfMetricsMaxRequests } from "./perf_metrics.ts";
import { Problems } from "./problems.ts";
import { RouterFile, type ServerSection } from "./router_file.ts";
import { checkSchema, knownKeys, unknownKey } from "./schema_check.ts";
import { parseServerUrl } from "./server_url.ts";
import type { LogLevel, RouterSettings, ServerGroupSettings, WorkerAddress } from "./settings.ts";
import { workerKeys } from "./worker_file.ts";
import { authToken, type Resolved } from "./worker_settings.ts";
import type { Path, YamlSource } from "./yaml_source.ts";

export interface RouterSources {
  /** `-c` */
  readonly configFile: string;
  readonly flags?: Flags<RouterFlagValues>;
  readonly env?: Env;
}

const MIB = 1 << 20;
const groups = ["context_servers", "generation_servers"] as const;

/** Reads and checks a router file without resolving it: undefined when it is wrong. */
export function parseRouterFile(source: YamlSource, problems: Problems): RouterFile | undefined {
  renameOldNames(source, problems);
  const sections: readonly Path[] = [[], ...groups.map((name) => [name])];
  // Settings of the workers, which the MPI mode reads from here; the router itself has no use for them (S38).
  for (const section of sections) {
    const known = new Set(knownKeys(RouterFile, section));
    takeForeign(source, section, new Set([...foreignLlmArguments].filter((name) => !known.has(name))));
    takeForeign(source, [...section, "kv_cache_config"], foreignKvCacheArguments);
  }
  warnAboutStrangers(source, problems);
  lowerCaseRouterTypes(source);
  warnAboutUnits(source, problems);
  refuseContradictions(source, problems);
  return checkSchema(RouterFile, source, problems);
}

/** An unknown key at the top level is a warning: trtllm-serve hands it down to the workers (S39). */
function warnAboutStrangers(source: YamlSource, problems: Problems): void {
  const known = knownKeys(RouterFile, []);
  for (const key of Object.keys(source.root)) {
    if (known.includes(key)) continue;
    unknownKey(key, [], known, source, problems, "warning");
    source.remove([key]);
  }
}

function lowerCaseRouterTypes(source: YamlSource): void {
  for (const group of groups) {
    const type = source.get([group, "router", "type"]);
    if (typeof type === "string") source.set([group, "router", "type"], type.toLowerCase());
  }
}

/** A key at the top level is inherited by both sections; another value in a section contradicts it (S38). */
function refuseContradictions(source: YamlSource, problems: Problems): void {
  for (const key of [...Object.keys(workerKeys), "model"]) {
    const outer = source.get([key]);
    if (outer === undefined || outer === null) continue;
    for (const group of groups) {
      const inner = source.get([group, key]);
      if (inner === undefined || inner === null || JSON.stringify(inner) === JSON.stringify(outer)) continue;
      const place = source.placeOfValue([key]);
      const text = `differs from the same key at the top level (line ${place.line}), which every section inherits`;
      problems.add("error", `${group}.${key}`, text, source.placeOfValue([group, key]));
    }
  }
}

/** Everything `kvt disaggregated` was given, checked and merged by S10: default < environment < file < flag. Never throws. */
export function resolveRouter(sources: RouterSources): Resolved<RouterSettings> {
  const problems = new Problems();
  const chosen = new Chosen(["env", "file", "flag"]);
  const flags = sources.flags ?? {};
  const environment = readEnvironment(sources.env ?? {}, problems);
  const source = readSource(sources.configFile, problems);
  const parsed = source ? parseRouterFile(source, problems) : undefined;
  const file = new FileSection<RouterFile>(parsed, source, []);

  const seconds = (key: "server_start_timeout" | "request_timeout" | "metrics_log_interval", fallback: number) =>
    1000 * chosen.pick<number>(key, fallback, { flag: flags[key] });
  const port = chosen.pick<number>("port", 8000, { file: file.value("port") });
  const context = serverGroup("context_servers", file, source, chosen, problems);
  const generation = serverGroup("generation_servers", file, source, chosen, problems);
  if (parsed) {
    refuseUnbuilt(file, flags, problems);
    compareMixedServers(parsed, context, generation, source, problems);
  }
  const retries = chosen.pick<number>("max_retries", 1, { file: file.value("max_retries") });
  const noRetry = chosen.pick<boolean>("no_retry", false, { env: environment.noRetry });

  const settings: RouterSettings = {
    host: chosen.pick<string>("hostname", "localhost", { file: file.value("hostname") }),
    port,
    logLevel: chosen.pick<LogLevel>("log_level", "info", { env: environment.logLevel, flag: flags.log_level }),
    model: chosen.pick<string | null>("model", null, { file: file.value("model") }),
    strictModel: chosen.pick<boolean>("strict_model", false, { flag: flags.strict_model }),
    context,
    generation,
    scheduleStyle: chosen.pick<RouterSettings["scheduleStyle"]>("schedule_style", "context_first", {
      file: file.value("schedule_style"),
    }),
    maxRetries: noRetry ? 0 : retries,
    nodeId: chosen.pick<number>("node_id", defaultNodeId(port), { file: file.value("node_id") }),
    allowRequestChatTemplate: chosen.pick<boolean>("allow_request_chat_template", false, {
      file: file.value("allow_request_chat_template"),
    }),
    serverStartTimeoutMs: seconds("server_start_timeout", 180),
    requestTimeoutMs: seconds("request_timeout", 180),
    metricsLogIntervalMs: seconds("metrics_log_interval", 0),
    maxBodyBytes: MIB * chosen.pick<number>("max_body_mb", 64, { flag: flags.max_body_mb }),
    perfMetricsMaxRequests: perfMetricsMaxRequests(file, chosen, problems, "router"),
    authToken: authToken(environment, chosen),
  };
  return { settings, effective: chosen.values, problems };
}

/** Two routers on one host differ, and one keeps its number over restarts of the program (S48). */
function defaultNodeId(port: number): number {
  const macs = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .map((address) => address.mac)
    .filter((mac) => mac !== "00:00:00:00:00:00");
  let boot = "";
  try {
    boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8");
  } catch {
    // Not Linux: address and port have to do.
  }
  return (
    createHash("sha256")
      .update(`${macs[0] ?? ""} ${boot} ${port}`)
      .digest()[0] ?? 0
  );
}

function serverGroup(
  name: (typeof groups)[number],
  file: FileSection<RouterFile>,
  source: YamlSource | undefined,
  chosen: Chosen,
  problems: Problems,
): ServerGroupSettings {
  const section = file.section(name) as FileSection<ServerSection>;
  const given = section.value("urls");
  const servers = readUrls(name, given?.value ?? [], source, problems);
  const count = section.value("num_instances");
  if (given && count && count.value !== given.value.length) {
    const text = `${count.value}, but urls lists ${given.value.length}; write ${given.value.length} or drop the key`;
    section.report(problems, "error", "num_instances", text);
  }
  // With discovery the urls come from there (S50); a file that could not be parsed has said enough.
  if (source && (given?.value.length ?? 0) === 0 && !file.has("disagg_cluster") && problems.fatal.length === 0) {
    const what = file.has(name) ? "has no urls: list the servers as host:port" : "is required: it lists the servers";
    problems.add("error", name, what, source.placeOfKey([name]));
  }
  chosen.pick<readonly string[]>(`${name}.urls`, [], { file: given });
  chosen.pick<number>(`${name}.num_instances`, servers.length, { file: count });
  const router = section.section("router");
  const type = router.value("type");
  const policy = chosen.pick<ServerGroupSettings["policy"]>(`${name}.router.type`, "round_robin", { file: type });
  if (policy !== "round_robin") {
    const text = `${policy} is not built yet; round_robin is the one there is`;
    router.report(problems, "not_built", "type", text);
  }
  for (const key of router.keys) {
    if (key !== "type") router.report(problems, "note", key, "has no effect on round_robin");
  }
  return { servers, policy };
}

function readUrls(
  name: string,
  urls: readonly string[],
  source: YamlSource | undefined,
  problems: Problems,
): WorkerAddress[] {
  const servers: WorkerAddress[] = [];
  for (const [i, url] of urls.entries()) {
    const place = source?.placeOfValue([name, "urls", i]);
    const address = parseServerUrl(url);
    if (typeof address === "string") {
      problems.add("error", `${name}.urls[${i}]`, `${JSON.stringify(url)}: ${address}`, place);
    } else if (servers.some((other) => other.origin === address.origin)) {
      problems.add("error", `${name}.urls[${i}]`, `${url} is listed twice in this section`, place);
    } else {
      servers.push(address);
    }
  }
  return servers;
}

/** One server in both sections plays both roles; then its other arguments must agree (S3, S41). */
function compareMixedServers(
  parsed: RouterFile,
  context: ServerGroupSettings,
  generation: ServerGroupSettings,
  source: YamlSource | undefined,
  problems: Problems,
): void {
  const both = generation.servers.filter((server) => context.servers.some(({ origin }) => origin === server.origin));
  const [first] = both;
  if (!first || !source) return;
  const left = parsed.context_servers ?? {};
  const right = parsed.generation_servers ?? {};
  for (const key of [...Object.keys(workerKeys), "model"] as (keyof ServerSection)[]) {
    if (JSON.stringify(left[key] ?? null) === JSON.stringify(right[key] ?? null)) continue;
    const text = `differs between the sections, but ${first.url} is in both and can have one value only`;
    const place = source.placeOfValue(["generation_servers", key]);
    problems.add("error", `generation_servers.${key}`, text, place);
  }
}

/** Known, right, and not there yet: each gets a sentence (never silence). */
function refuseUnbuilt(file: FileSection<RouterFile>, flags: Flags<RouterFlagValues>, problems: Problems): void {
  const refuse = (key: keyof RouterFile, text: string): void => file.report(problems, "not_built", key, text);
  if (file.has("conditional_disagg_config")) {
    const text = "needs a generation router of type kv_cache_aware, which is not built yet; remove the section";
    refuse("conditional_disagg_config", text);
  }
  if (file.section("otlp_config").has("otlp_traces_endpoint")) refuse("otlp_config", "tracing is not built yet");
  refuseCluster(file.section("disagg_cluster"), problems);
  if (file.has("disagg_coordinator_url")) refuse("disagg_coordinator_url", "a coordinator is not provided");
  if ((file.value("num_workers")?.value ?? 1) > 1) {
    refuse("num_workers", "several router processes are not built yet; write 1");
  }
  for (const key of ["gen_strip_message_history", "gen_tokids_ctxbytes"] as const) {
    if (file.value(key)?.value === true) refuse(key, "true is not built yet; write false");
  }
  if (file.has("perf_metrics_output_dir"))
    refuse("perf_metrics_output_dir", "writing records to files is not built yet; read GET /perf_metrics");
  refuseMetadataServer(flags.metadata_server_config_file, file.has("disagg_cluster"), problems);
}
