import { describe, expect, it } from "vitest";
import type { Problem } from "../../../src/config/problems.ts";
import { type RouterSources, resolveRouter } from "../../../src/config/router_settings.ts";
import { example, seed, written } from "./written_file.ts";

const servers = `context_servers:
  urls: ["localhost:8001"]
generation_servers:
  urls: ["localhost:8002"]
`;

const resolve = (yaml: string, options: Omit<RouterSources, "configFile"> = {}) =>
  resolveRouter({ configFile: written(yaml), ...options });

const told = (problems: readonly Problem[]): string[] =>
  problems.map(
    ({ place, kind, key, text }) => `${place ? `${place.line}:${place.column} ` : ""}${kind} ${key}: ${text}`,
  );

const fatal = (yaml: string): string[] => told(resolve(yaml).problems.fatal);

describe("the seed's router files", () => {
  it.each([seed("disagg_config.yaml"), seed("disagg_config_mpi.yaml"), example("disagg_config.yaml")])(
    "%s starts without any remark",
    (configFile) => {
      const { settings, problems } = resolveRouter({ configFile });
      expect(problems.all).toEqual([]);
      expect(settings).toMatchObject({ host: "localhost", port: 8000, maxRetries: 1 });
      expect(settings.context.servers.map(({ origin }) => origin)).toEqual([
        "http://localhost:8001",
        "http://localhost:8002",
      ]);
      expect(settings.generation.servers.map(({ url }) => url)).toEqual(["localhost:8003"]);
    },
  );
});

describe("urls", () => {
  const withUrl = (url: string): string => `context_servers: {urls: [${url}]}\ngeneration_servers: {urls: ["g:1"]}\n`;

  it.each([
    ["'host:80'", "http://host:80"],
    ["'http://Host.example:8001/'", "http://host.example:8001"],
    ["'https://h:443'", "https://h:443"],
    ["'[::1]:8001'", "http://[::1]:8001"],
    ["'http://[fe80::1]:9'", "http://[fe80::1]:9"],
    ["'10.0.0.1:8001'", "http://10.0.0.1:8001"],
  ])("%s is %s", (url, origin) => {
    const { settings, problems } = resolve(withUrl(url));
    expect(problems.all).toEqual([]);
    expect(settings.context.servers[0]?.origin).toBe(origin);
  });

  it.each([
    ["localhost", "the port is missing: write localhost:8001"],
    ["'::1:8001'", "write an IPv6 address in brackets"],
    ["'[zz]:1'", "no IPv6 address"],
    ["'h:0'", "not in 1..65535"],
    ["'h:65536'", "not in 1..65535"],
    ["'ftp://h:1'", "write host:port"],
    ["'h:1/v1'", "write host:port"],
    ["8001", "must be a string; put 8001 in quotes"],
    ["''", "must be at least 1 characters"],
  ])("%s is refused at its place", (url, words) => {
    const problems = fatal(withUrl(url));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(/^1:26 error context_servers\.urls\[0\]/);
    expect(problems[0]).toContain(words);
  });

  it("refuses the same address twice in a section, and takes it once in each (a mixed server)", () => {
    expect(fatal(withUrl("'a:1', 'http://A:1'"))[0]).toContain("listed twice");
    const { settings, problems } = resolve(withUrl("'g:1'"));
    expect(problems.all).toEqual([]);
    expect(settings.context.servers).toEqual(settings.generation.servers);
  });

  it("refuses a mixed server whose two sections disagree", () => {
    const yaml = `context_servers: {urls: ["g:1"], max_batch_size: 2}\ngeneration_servers: {urls: ["g:1"], max_batch_size: 3}\n`;
    expect(fatal(yaml)).toEqual([
      "2:53 error generation_servers.max_batch_size: differs between the sections, but g:1 is in both and can have one value only",
    ]);
  });
});

describe("sections", () => {
  it("num_instances must be the number of urls, and follows from them when absent", () => {
    const wrong = "context_servers:\n  num_instances: 2\n  urls: ['a:1']\ngeneration_servers: {urls: ['g:1']}\n";
    expect(fatal(wrong)).toEqual([
      "2:18 error context_servers.num_instances: 2, but urls lists 1; write 1 or drop the key",
    ]);
    const derived = resolve(servers).effective.find(({ key }) => key === "context_servers.num_instances");
    expect(derived).toEqual({ key: "context_servers.num_instances", value: 1, origin: "default" });
  });

  it.each([
    ["generation_servers: {urls: ['g:1']}\n", "context_servers: is required"],
    ["context_servers: {urls: []}\ngeneration_servers: {urls: ['g:1']}\n", "context_servers: has no urls"],
    ["context_servers:\ngeneration_servers: {urls: ['g:1']}\n", "context_servers: is required"],
  ])("without urls are refused: %j", (yaml, words) => {
    expect(fatal(yaml).join()).toContain(words);
  });

  it("refuse a value that contradicts the inherited one, and name its line", () => {
    const yaml = `max_batch_size: 4\n${servers}  max_batch_size: 5\n`;
    expect(fatal(yaml)).toEqual([
      "6:19 error generation_servers.max_batch_size: differs from the same key at the top level (line 1), which every section inherits",
    ]);
    expect(fatal(`max_batch_size: 4\n${servers}  max_batch_size: 4\n`)).toEqual([]);
  });

  it("may carry settings of the workers that this version of a worker refuses", () => {
    expect(fatal(`tensor_parallel_size: 8\ncuda_graph_config: {}\n${servers}`)).toEqual([]);
  });

  it("refuse an unknown key, the top level only warns", () => {
    expect(fatal(`${servers}  num_instance: 1\n`)[0]).toContain("did you mean num_instances?");
    const { problems } = resolve(`hostnam: x\n${servers}`);
    expect(problems.fatal).toEqual([]);
    expect(told(problems.mild)).toEqual(["1:1 warning hostnam: unknown key; did you mean hostname?"]);
  });

  it("takes router types in any case, and refuses those that are not built", () => {
    const router = (type: string): string => `${servers}  router: {type: ${type}}\n`;
    expect(fatal(router("ROUND_ROBIN"))).toEqual([]);
    for (const type of ["load_balancing", "KV_Cache_Aware", "conversation"]) {
      expect(fatal(router(type))).toEqual([expect.stringMatching(/^5:18 not_built .*is not built yet/)]);
    }
    expect(fatal(router("round_robbin"))[0]).toContain("did you mean round_robin?");
    expect(told(resolve(router("round_robin, use_tokens: true")).problems.mild)).toEqual([
      "5:43 note generation_servers.router.use_tokens: has no effect on round_robin",
    ]);
  });
});

describe("what is not built yet", () => {
  it.each([
    "conditional_disagg_config: {max_local_prefill_length: 5}",
    "otlp_config: {otlp_traces_endpoint: 'http://x'}",
    "num_workers: 2",
    "gen_strip_message_history: true",
    "gen_tokids_ctxbytes: true",
    "perf_metrics_output_dir: /tmp",
    "disagg_coordinator_url: 'http://x'",
    "disagg_cluster: {cluster_uri: 'http://localhost:8000'}",
  ])("%s is refused with a sentence", (line) => {
    const { problems } = resolve(`${line}\n${servers}`);
    expect(problems.fatal.map(({ kind, place }) => [kind, place?.line])).toEqual([["not_built", 1]]);
  });

  it("all of these are accepted at their defaults", () => {
    const yaml = `schedule_style: context_first
conditional_disagg_config: null
otlp_config: {otlp_traces_endpoint: null}
num_workers: 1
gen_strip_message_history: false
return_perf_metrics: False
perf_metrics_max_requests: 0
disagg_coordinator_url: null
${servers}`;
    expect(resolve(yaml).problems.all).toEqual([]);
  });

  it("a metadata server is refused, and contradicts disagg_cluster", () => {
    const flags = { metadata_server_config_file: { value: seed("metadata_config.yaml"), origin: "-m" } };
    expect(told(resolve(servers, { flags }).problems.fatal).join()).toContain(
      "-m: the metadata server is not built yet",
    );
    const both = resolve(`disagg_cluster: {cluster_uri: 'http://x:1'}\n${servers}`, { flags });
    expect(told(both.problems.fatal).join()).toContain("choose one");
  });
});

describe("router settings", () => {
  it("precedence is default < file < flag", () => {
    const flags = { request_timeout: { value: 2.5, origin: "-r" } };
    expect(resolve(servers, { flags }).settings).toMatchObject({
      requestTimeoutMs: 2_500,
      serverStartTimeoutMs: 180_000,
      metricsLogIntervalMs: 0,
      maxBodyBytes: 64 << 20,
    });
  });

  it("schedule_style is context_first unless the file says generation_first", () => {
    expect(resolve(servers).settings.scheduleStyle).toBe("context_first");
    expect(resolve(`schedule_style: generation_first\n${servers}`).settings.scheduleStyle).toBe("generation_first");
    expect(fatal(`schedule_style: gen_first\n${servers}`)[0]).toContain("schedule_style");
  });

  it("TRTLLM_DISAGG_NO_RETRY=1 ends retries, whatever the file says", () => {
    expect(resolve(`max_retries: 3\n${servers}`).settings.maxRetries).toBe(3);
    expect(resolve(`max_retries: 3\n${servers}`, { env: { TRTLLM_DISAGG_NO_RETRY: "1" } }).settings.maxRetries).toBe(0);
  });

  it("the node id is in 0..255, stable, and differs by port", () => {
    const ids = [8000, 8001, 8002, 8003].map((port) => resolve(`port: ${port}\n${servers}`).settings.nodeId);
    for (const id of ids) expect(id).toBeGreaterThanOrEqual(0);
    for (const id of ids) expect(id).toBeLessThanOrEqual(255);
    expect(resolve(`port: 8000\n${servers}`).settings.nodeId).toBe(ids[0]);
    expect(new Set(ids).size).toBeGreaterThan(1);
    expect(fatal(`node_id: 256\n${servers}`)[0]).toContain("at most 255");
  });

  it.each(["0", "65536", "'8000'", "80.5"])("refuses port %s", (port) => {
    expect(fatal(`port: ${port}\n${servers}`)).toHaveLength(1);
  });
});
