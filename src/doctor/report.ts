import type { NativeNixlReport } from "../native/nixl_binding.ts";
import type { NixlEnv, NixlPlace } from "../nixl/places.ts";
import { mapPlugins } from "../nixl/plugin_tree.ts";
import { type NixlMiss, nothingFound, searchNixl } from "../nixl/search.ts";
import { type CudaFacts, cudaFacts } from "./cuda.ts";
import { type HostFacts, hostFacts } from "./host.ts";
import { examinePair, type PairFacts } from "./peers.ts";

export interface NixlFacts {
  readonly library: (NixlPlace & NativeNixlReport) | null;
  /** Places that were looked at and are not used, with why. */
  readonly missed: readonly NixlMiss[];
  readonly ucx: { readonly version: string | null; readonly transports: readonly string[] };
  /** Set in the environment, of those that NIXL, UCX and libfabric read. */
  readonly variables: Readonly<Record<string, string>>;
  readonly warnings: readonly string[];
}

export interface PathFacts {
  readonly name: string;
  readonly usable: boolean;
  /** Why it can be used or why not. */
  readonly why: string;
}

export interface DoctorReport {
  readonly host: HostFacts;
  readonly nixl: NixlFacts;
  readonly cuda: CudaFacts;
  /** Of this machine. */
  readonly paths: readonly PathFacts[];
  /** Of two running workers, where they were named. */
  readonly pair?: PairFacts;
  /** What is broken, with a remedy each; kvt doctor exits with 1 when there is any. */
  readonly problems: readonly string[];
}

const variableNames = /^(NIXL_|UCX_|FI_|KVT_NIXL|TRTLLM_NIXL)/;

/**
 * Looks at this machine, and at two workers as a pair where they are named (`HOST:PORT`). Loads NIXL in child processes only; takes a second
 * or two, and some more for the pair.
 */
export async function examine(env: NixlEnv, peers?: readonly [string, string]): Promise<DoctorReport> {
  const problems: string[] = [];
  const host = hostFacts(env);
  if ("why" in host.addon) problems.push(host.addon.why);
  if (host.socketDirectory.why !== null) {
    const { path, why } = host.socketDirectory;
    problems.push(`the socket directory ${path} can't be used: ${why}; set KVT_SOCKET_DIR to one of your own`);
  }
  const nixl = "why" in host.addon ? withoutAddon(env) : await nixlFacts(env, problems);
  const local = { host, nixl, cuda: cudaFacts(), paths: pathFacts(host, nixl), problems };
  if (peers === undefined) return local;
  try {
    return { ...local, pair: await examinePair(peers, env.KVT_AUTH_TOKEN, problems) };
  } catch (error) {
    problems.push(error instanceof Error ? error.message : String(error));
    return local;
  }
}

const setVariables = (env: NixlEnv): Readonly<Record<string, string>> =>
  Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) => (variableNames.test(name) && value ? [[name, value]] : [])),
  );

const withoutAddon = (env: NixlEnv): NixlFacts => ({
  library: null,
  missed: [],
  ucx: { version: null, transports: [] },
  variables: setVariables(env),
  warnings: ["NIXL was not looked for: that needs the addon"],
});

async function nixlFacts(env: NixlEnv, problems: string[]): Promise<NixlFacts> {
  const plugin = env.TRTLLM_NIXL_KVCACHE_BACKEND?.toUpperCase() === "LIBFABRIC" ? "LIBFABRIC" : "UCX";
  // At this level UCX names the transports that it takes.
  const talking = { UCX_LOG_LEVEL: "info", ...env };
  let search = await searchNixl({ env: talking, plugin, allPlugins: true });
  const warnings: string[] = [];
  if (search.found) {
    try {
      const mapped = mapPlugins(env, search.found.report.file);
      warnings.push(...mapped.warnings);
      if (mapped.directory !== undefined) {
        const again = { ...talking, NIXL_PLUGIN_DIR: mapped.directory, KVT_NIXL_LIBRARY: search.found.place.file };
        search = { ...search, ...(await searchNixl({ env: again, plugin, allPlugins: true })), missed: search.missed };
      }
    } catch (error) {
      problems.push(error instanceof Error ? error.message : String(error));
    }
  }
  const { found, missed } = search;
  const broken = missed.some(({ why }) => why !== "no such file");
  if (!found && (broken || env.KVT_NIXL_LIBRARY)) {
    const error = nothingFound(search);
    problems.push(`${error.message}; ${error.remedy}`);
  }
  const trialWhy = found?.report.trial?.why ?? null;
  if (trialWhy !== null) problems.push(`plug-in ${plugin} does not work: ${trialWhy}`);
  if (found && found.report.ucp.length > 1) {
    warnings.push(`two copies of UCX in one process have hung before: ${found.report.ucp.join(", ")}`);
  }
  return {
    library: found ? { ...found.place, ...found.report } : null,
    missed,
    ucx: ucxFacts(found?.said ?? []),
    variables: setVariables(env),
    warnings,
  };
}

/** From lines like `ucp_worker.c:1997 UCX  INFO    kvt-probe-reader intra-node cfg#1 rma_am(tcp/lo)  am(tcp/lo cma/memory)`. */
function ucxFacts(said: readonly string[]): NixlFacts["ucx"] {
  const version = said.map((line) => line.match(/UCX\s+INFO\s+Version (\S+)/)?.[1]).find((text) => text !== undefined);
  const transports = new Set<string>();
  for (const line of said.filter((text) => text.includes("cfg#"))) {
    for (const [, group = ""] of line.matchAll(/\(([^)]*)\)/g)) {
      for (const name of group.split(/\s+/)) if (name.includes("/")) transports.add(name);
    }
  }
  return { version: version ?? null, transports: [...transports].sort() };
}

function directFacts({ library }: NixlFacts): PathFacts {
  const name = "nixl_direct";
  if (library === null) return { name, usable: false, why: "no NIXL" };
  const trial = library.trial;
  if (trial === null || trial.why !== null) return { name, usable: false, why: trial?.why ?? "no plug-in was tried" };
  if (trial.plugin === "UCX") return { name, usable: true, why: "any host that NIXL's plug-in UCX reaches" };
  return { name, usable: false, why: `plug-in ${trial.plugin} reads into staging buffers only (nixl_staged)` };
}

function stagedFacts({ library }: NixlFacts): PathFacts {
  const name = "nixl_staged";
  if (library === null) return { name, usable: false, why: "no NIXL" };
  const trial = library.trial;
  if (trial === null || trial.why !== null) return { name, usable: false, why: trial?.why ?? "no plug-in was tried" };
  return { name, usable: true, why: `any host that NIXL's plug-in ${trial.plugin} reaches, through staging slots` };
}

function pathFacts(host: HostFacts, nixl: NixlFacts): readonly PathFacts[] {
  const [addon, socket] = ["why" in host.addon, host.socketDirectory.why];
  const why = addon ? "the addon can't be loaded" : (socket ?? "same user, same host: peers map each other's pool");
  return [
    { name: "shared_memory", usable: !addon && socket === null, why },
    { name: "cuda_peer", usable: false, why: "workers have their pools in memory of the host (docs/gpu.md)" },
    directFacts(nixl),
    stagedFacts(nixl),
  ];
}
