import { dirname } from "node:path";
import { KvError } from "../errors.ts";
import type { NativeNixlReport } from "../native/nixl_binding.ts";
import { nixlEnvironment } from "./environment.ts";
import type { NixlEnv } from "./places.ts";
import { dependencyFolders, mapPlugins } from "./plugin_tree.ts";
import { type NixlSearch, nothingFound, searchMapped, searchNixl } from "./search.ts";

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
  /** `UCX instead of LIBFABRIC: ` why, and what to do; null: what was asked for runs. Health, /server_info and kvt doctor say it. */
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
  const wanted = isDemanded(wish) || (path === null && (backend !== "DEFAULT" || !loopback));
  if (!wanted) return { sharedMemory: true, nixl: null, warnings: [], degraded: null };
  return pathsOf(wish, await findOnce(env, search));
}

/** Nothing but NIXL moves KV then. */
const isDemanded = ({ path, sameHost }: PathWish): boolean => (path === null ? !sameHost : path !== "shared_memory");

/** What becomes of a wish with what a search has found; the search is taken as wanted. @throws KvError as choosePaths */
export function pathsOf(wish: PathWish, found: NixlSearch): PathChoice {
  const { backend, path, env } = wish;
  const demanded = isDemanded(wish);
  const sharedMemory = !demanded;
  const warnings: string[] = [];
  const asked = pluginOf(wish, warnings);
  const without = (error: KvError): PathChoice => {
    const fallback = env.KVT_NIXL_FALLBACK;
    const strict = demanded || (backend === "NIXL" ? fallback !== "1" : fallback === "0");
    if (strict) throw error;
    const warning = `${error.message}; ${SAME_HOST_ONLY}. ${error.remedy}`;
    return { sharedMemory, nixl: null, warnings: [...warnings, warning], degraded: null };
  };
  if (found.found === undefined) return without(nothingFound(found));
  const { report } = found.found;
  const lacks = asked === "UCX" ? null : libfabricLacks(wish, report);
  const degraded = lacks === null ? null : `UCX instead of LIBFABRIC: ${lacks}`;
  if (degraded !== null) warnings.push(`degraded: ${degraded}`);
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
    degraded,
  };
}

function findOnce(env: NixlEnv, search: typeof searchNixl): Promise<NixlSearch> {
  const key = JSON.stringify(
    Object.entries(env)
      .filter(([name]) => /NIXL|UCX_|FI_|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA|XDG_DATA|HOME/.test(name))
      .sort(),
  );
  let found = searches.get(key);
  if (found === undefined) {
    const fabric = env.TRTLLM_NIXL_KVCACHE_BACKEND?.toUpperCase() === "LIBFABRIC";
    found = searchMapped({ env, plugin: "UCX", allPlugins: true, fabric }, search);
    searches.set(key, found);
    // What failed for another reason than a missing NIXL is asked again.
    found.catch(() => searches.delete(key));
  }
  return found;
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

/** LIBFABRIC is asked for: why it can't be had and what to do, or null. @throws KvError NIXL_FAILED where nothing else may be taken instead */
function libfabricLacks({ path, env }: PathWish, report: NativeNixlReport): string | null {
  if (path === "nixl_direct") {
    const why =
      "path nixl_direct does not go with plug-in LIBFABRIC: a read of a dead peer never ends there, so its reads have to go to staging slots (nixl_staged)";
    throw new KvError("NIXL_FAILED", { why });
  }
  const why = whyNoLibfabric(report, env);
  if (why !== null && env.KVT_NIXL_FALLBACK === "0") throw new KvError("NIXL_FAILED", { why });
  return why;
}

const BRING_FABRIC =
  "`kvt nixl install --with-libfabric` brings libfabric and hwloc; or rebuild NIXL with -Dlibfabric_path=PATH, or put a plug-in of the same " +
  "NIXL version into NIXL_PLUGINS_DIR";
const BRING_CUDA =
  "libcuda.so.1 comes with NVIDIA's driver; where there is no GPU take plug-in UCX, or a NIXL that was built without CUDA";

/** Why plug-in LIBFABRIC can't be loaded, in the loader's own words, with the places it looked at and what to do; null when it can (S174). */
export function whyNoLibfabric(report: NativeNixlReport, env: NixlEnv): string | null {
  const plugin = report.plugins.find(({ name }) => name === "LIBFABRIC");
  const lacks = plugin === undefined ? "NIXL has no libplugin_LIBFABRIC.so" : plugin.why;
  if (lacks === null) return null;
  // The loader stops at the first that is absent.
  const absent = (report.fabric?.libraries ?? []).filter(({ why }) => why !== null);
  const told = absent.some(({ name }) => lacks.includes(name));
  const whys = [...(told ? [] : [lacks]), ...absent.map(({ why }) => why)];
  const cuda = absent.filter(({ name }) => name.startsWith("libcuda."));
  const remedies = [
    ...(told && cuda.length === absent.length ? [] : [BRING_FABRIC]),
    ...(cuda.length > 0 ? [BRING_CUDA] : []),
  ];
  const searched = searchedFor(report, env).join(", ");
  return `plug-in LIBFABRIC can't be loaded: ${whys.join("; ")}; searched were ${searched}. ${remedies.join(". ")}`;
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
