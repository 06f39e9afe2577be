import { dirname } from "node:path";
import { KvError } from "../errors.ts";
import type { NativeNixlReport } from "../native/nixl_binding.ts";
import { nixlEnvironment } from "./environment.ts";
import type { NixlEnv } from "./places.ts";
import { dependencyFolders, mapPlugins } from "./plugin_tree.ts";
import { type NixlSearch, nothingFound, searchNixl } from "./search.ts";

export const forcedPaths = ["shared_memory", "cuda_peer", "nixl_direct", "nixl_staged"] as const;
export type ForcedPath = (typeof forcedPaths)[number];
export type NixlBackend = "DEFAULT" | "NIXL" | "UCX";

export interface PathWish {
  /** cache_transceiver_config.backend: which plug-in the NIXL paths take, and whether NIXL must be there. */
  readonly backend: NixlBackend;
  /** KVT_PATH or transfer.path: this one and no other. */
  readonly path: ForcedPath | null;
  /** transfer.same_host: false turns the paths between processes of one host off. */
  readonly sameHost: boolean;
  /** Nobody on another host can reach the control endpoint, so NIXL is not looked for unless it is asked for. */
  readonly loopback: boolean;
  readonly env: NixlEnv;
}

/** What of the addon's data plane is opened. */
export interface PathChoice {
  readonly sharedMemory: boolean;
  readonly nixl: {
    readonly library: string;
    readonly version: string | null;
    readonly plugin: "UCX" | "LIBFABRIC";
    readonly environment: Readonly<Record<string, string>>;
    /** Which ways of reading there are, nixl_direct and nixl_staged. */
    readonly direct: boolean;
    readonly staged: boolean;
  } | null;
  readonly warnings: readonly string[];
  /** "UCX instead of LIBFABRIC", or null. */
  readonly degraded: string | null;
}

const SAME_HOST_ONLY = "KV moves between processes of this host only, peers on other hosts are refused";
const searches = new Map<string, Promise<NixlSearch>>();

/**
 * Decides which paths a transceiver has (S14 to S17, S69, S70). NIXL is tried in a child process, once a process and set of variables.
 * @throws KvError NIXL_NOT_FOUND, NIXL_UNUSABLE: NIXL is demanded and there is none; NIXL_FAILED: what is demanded can't be had of it
 */
export async function choosePaths(wish: PathWish, search: typeof searchNixl = searchNixl): Promise<PathChoice> {
  const { backend, path, loopback, env } = wish;
  const sharedMemory = path === null ? wish.sameHost : path === "shared_memory";
  const demanded = !sharedMemory;
  const wanted = demanded || (path === null && (backend !== "DEFAULT" || !loopback));
  const none = { sharedMemory, nixl: null, warnings: [], degraded: null };
  if (!wanted) return none;
  const warnings: string[] = [];
  const asked = pluginOf(wish, warnings);
  const found = await findOnce(env, search);
  const without = (error: KvError): PathChoice => {
    const fallback = env.KVT_NIXL_FALLBACK;
    const strict = demanded || (backend === "NIXL" ? fallback !== "1" : fallback === "0");
    if (strict) throw error;
    return { ...none, warnings: [...warnings, `${error.message}; ${SAME_HOST_ONLY}. ${error.remedy}`] };
  };
  if (found.found === undefined) return without(nothingFound(found));
  const { report } = found.found;
  const lacks = asked === "UCX" ? null : libfabricLacks(wish, found.found.report);
  if (lacks !== null) warnings.push(`plug-in LIBFABRIC can't be used: ${lacks}; UCX is used instead`);
  const plugin = lacks === null ? asked : "UCX";
  const broken = plugin === "UCX" ? ucxLacks(report, env) : null;
  if (broken !== null) return without(new KvError("NIXL_UNUSABLE", { why: broken }));
  const mapped = mapPlugins(env, report.file);
  const environment = {
    ...nixlEnvironment(env),
    ...(mapped.directory === undefined ? {} : { NIXL_PLUGIN_DIR: mapped.directory }),
  };
  return {
    sharedMemory,
    nixl: {
      library: report.file,
      version: report.version,
      plugin,
      environment,
      direct: plugin === "UCX" && path !== "nixl_staged",
      staged: path !== "nixl_direct",
    },
    warnings: [...warnings, ...mapped.warnings],
    degraded: lacks === null ? null : "UCX instead of LIBFABRIC",
  };
}

function findOnce(env: NixlEnv, search: typeof searchNixl): Promise<NixlSearch> {
  const key = JSON.stringify(
    Object.entries(env)
      .filter(([name]) => /NIXL|UCX_|FI_|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA|XDG_DATA/.test(name))
      .sort(),
  );
  let found = searches.get(key);
  if (found === undefined) {
    found = findMapped(env, search);
    searches.set(key, found);
    // What failed for another reason than a missing NIXL is asked again.
    found.catch(() => searches.delete(key));
  }
  return found;
}

/** With the plug-ins that will be loaded: those of NIXL_PLUGINS_DIR may not be those that the library brings. */
async function findMapped(env: NixlEnv, search: typeof searchNixl): Promise<NixlSearch> {
  const first = await search({ env, plugin: "UCX", allPlugins: true });
  if (first.found === undefined || !env.NIXL_PLUGINS_DIR) return first;
  const { directory } = mapPlugins(env, first.found.report.file);
  if (directory === undefined) return first;
  const mapped = { ...env, NIXL_PLUGIN_DIR: directory, KVT_NIXL_LIBRARY: first.found.place.file };
  const second = await search({ env: mapped, plugin: "UCX", allPlugins: true });
  return { ...second, missed: [...first.missed, ...second.missed] };
}

/** S16, S17, S76: what is asked for, UCX when that has no meaning. */
function pluginOf({ backend, env }: PathWish, warnings: string[]): "UCX" | "LIBFABRIC" {
  const { TRTLLM_NIXL_KVCACHE_BACKEND: asked = "", NIXL_BACKEND: foreign = "" } = env;
  if (foreign !== "")
    warnings.push(`NIXL_BACKEND=${foreign} is ignored: TRTLLM_NIXL_KVCACHE_BACKEND chooses the plug-in`);
  const name = asked.toUpperCase();
  if (backend === "UCX" || name === "" || name === "UCX") return "UCX";
  if (name === "LIBFABRIC") return "LIBFABRIC";
  const text = `TRTLLM_NIXL_KVCACHE_BACKEND=${asked} is no plug-in that moves KV: UCX and LIBFABRIC are`;
  if (env.KVT_NIXL_FALLBACK === "0") throw new KvError("NIXL_FAILED", { why: text });
  warnings.push(`${text}; UCX is used`);
  return "UCX";
}

/** LIBFABRIC is asked for: why it can't be had, or null. @throws KvError NIXL_FAILED where nothing else may be taken instead */
function libfabricLacks({ path, env }: PathWish, report: NativeNixlReport): string | null {
  if (path === "nixl_direct") {
    const why =
      "path nixl_direct does not go with plug-in LIBFABRIC: a read of a dead peer never ends there, so its reads have to go to staging slots (nixl_staged)";
    throw new KvError("NIXL_FAILED", { why });
  }
  const plugin = report.plugins.find(({ name }) => name === "LIBFABRIC");
  const lacks = plugin === undefined ? "NIXL has no libplugin_LIBFABRIC.so" : plugin.why;
  if (lacks === null) return null;
  const remedy =
    "`kvt nixl install --with-libfabric` brings libfabric and hwloc; or rebuild NIXL with -Dlibfabric_path, or put a plug-in of the same " +
    "NIXL version into NIXL_PLUGINS_DIR";
  const why = `it can't be loaded: ${lacks}; searched were ${searchedFor(report, env).join(", ")} (${remedy})`;
  if (env.KVT_NIXL_FALLBACK === "0")
    throw new KvError("NIXL_FAILED", { why: `plug-in LIBFABRIC can't be used: ${why}` });
  return why;
}

/** Why plug-in UCX of a library that can be loaded moves nothing here, or null. */
function ucxLacks(report: NativeNixlReport, env: NixlEnv): string | null {
  const plugin = report.plugins.find(({ name }) => name === "UCX");
  const lacks = plugin?.why ?? report.trial?.why ?? null;
  return (
    lacks &&
    `plug-in UCX of ${report.file} does not work: ${lacks}; searched were ${searchedFor(report, env).join(", ")}`
  );
}

/** Where NIXL looks for its plug-in, and the loader for what that needs. */
function searchedFor({ file, pluginDirectory }: NativeNixlReport, env: NixlEnv): readonly string[] {
  const { LD_LIBRARY_PATH: path = "" } = env;
  const folders = [pluginDirectory, dirname(file), ...dependencyFolders(file), ...path.split(":")];
  return [...new Set(folders.filter((folder) => folder !== "")), "the loader's own directories (ldconfig -p)"];
}

/** @internal For tests. */
export const forgetSearches = (): void => searches.clear();
