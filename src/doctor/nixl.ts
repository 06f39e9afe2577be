import { isKvError } from "../errors.ts";
import type { NativeFabric, NativeNixlReport } from "../native/nixl_binding.ts";
import { type PathChoice, pathsOf } from "../nixl/choice.ts";
import type { NixlEnv, NixlPlace } from "../nixl/places.ts";
import { type NixlMiss, type NixlSearch, nothingFound, searchMapped, searchNixl } from "../nixl/search.ts";

export interface NixlFacts {
  readonly library: (NixlPlace & NativeNixlReport) | null;
  /** Places that were looked at and are not used, with why. */
  readonly missed: readonly NixlMiss[];
  /** `UCX instead of LIBFABRIC: ` why, and what to do, as a worker of this environment says it; null: what is asked for runs. */
  readonly degraded: string | null;
  readonly ucx: { readonly version: string | null; readonly transports: readonly string[] };
  /** The libfabric that plug-in LIBFABRIC would have; null: there is no such plug-in. */
  readonly fabric: (NativeFabric & { readonly takes: string | null }) | null;
  /** Set in the environment, of those that NIXL, UCX and libfabric read. */
  readonly variables: Readonly<Record<string, string>>;
  readonly warnings: readonly string[];
}

const variableNames = /^(NIXL_|UCX_|FI_|KVT_NIXL|TRTLLM_NIXL)/;
/** Which provider NIXL takes, the first that there is (spec nixl.md section 6). */
const nixlProviders = ["cxi", "efa", "tcp", "sockets"];
/** S72. hwloc tells the version of its interface only, which has been 2.8 or more since hwloc 2.8. */
const wantedVersions: Readonly<Record<string, readonly [told: string, wanted: string]>> = {
  "libfabric.so.1": ["1.21", "libfabric 1.21"],
  "libhwloc.so.15": ["2.8", "hwloc 2.10"],
};

const none = (env: NixlEnv, warnings: readonly string[]): NixlFacts => ({
  library: null,
  missed: [],
  degraded: null,
  ucx: { version: null, transports: [] },
  fabric: null,
  variables: variablesOf(env),
  warnings,
});

export const withoutAddon = (env: NixlEnv): NixlFacts => none(env, ["NIXL was not looked for: that needs the addon"]);

/** Looks for NIXL, and at what a worker of this environment would run of it. What is broken is added to `problems`. */
export async function nixlFacts(env: NixlEnv, problems: string[]): Promise<NixlFacts> {
  const trouble = (error: unknown): void => {
    if (!isKvError(error)) throw error;
    problems.push(`${error.message}; ${error.remedy}`);
  };
  // At this level UCX names the transports that it takes.
  const options = { env: { UCX_LOG_LEVEL: "info", ...env }, plugin: "UCX", allPlugins: true, fabric: true };
  let own = env;
  let search = await searchMapped(options).catch((error: unknown) => {
    trouble(error);
    own = { ...env, NIXL_PLUGINS_DIR: undefined };
    return searchNixl(options);
  });
  const broken = search.missed.some(({ why }) => why !== "no such file");
  if (search.found === undefined && (broken || env.KVT_NIXL_LIBRARY)) trouble(nothingFound(search));
  let choice: PathChoice | null = null;
  if (search.found !== undefined) {
    try {
      choice = pathsOf({ backend: "DEFAULT", path: null, sameHost: true, loopback: false, env: own }, search);
    } catch (error) {
      trouble(error);
    }
  }
  const plugin = choice?.nixl?.plugin ?? "UCX";
  if (plugin !== "UCX" && choice?.nixl) search = await triedWith(plugin, choice.nixl.environment, search, options.env);
  const { found, missed } = search;
  const degraded = choice?.degraded ?? null;
  if (degraded !== null) problems.push(`degraded: ${degraded}`);
  const trialWhy = found?.report.trial?.why ?? null;
  // What keeps a worker from NIXL altogether.
  if (choice !== null && choice.nixl === null) problems.push(...choice.warnings);
  else if (trialWhy !== null) problems.push(`plug-in ${plugin} does not work: ${trialWhy}`);
  const fabric = found?.report.fabric ?? null;
  return {
    ...none(env, warningsOf(found?.report ?? null, choice)),
    library: found ? { ...found.place, ...found.report } : null,
    missed,
    degraded,
    ucx: ucxFacts(found?.said ?? []),
    fabric: fabric && { ...fabric, takes: nixlProviders.find((name) => fabric.providers.some(isOf(name))) ?? null },
  };
}

/** The same library, tried with another plug-in than UCX. */
async function triedWith(
  plugin: string,
  environment: Readonly<Record<string, string>>,
  search: NixlSearch,
  env: NixlEnv,
): Promise<NixlSearch> {
  const place = search.found?.place;
  if (place === undefined) return search;
  const own = { ...env, ...environment, KVT_NIXL_LIBRARY: place.file };
  const { found, missed } = await searchNixl({ env: own, plugin, allPlugins: true, fabric: true });
  return { found: found && { ...found, place }, missed: [...search.missed, ...missed] };
}

/** `tcp;ofi_rxm` is tcp with a layer above it. */
const isOf = (name: string) => (provider: string) => provider.split(";")[0] === name;

function warningsOf(report: NativeNixlReport | null, choice: PathChoice | null): readonly string[] {
  const said = choice?.nixl ? choice.warnings : [];
  const warnings = said.filter((text) => !text.startsWith("degraded: "));
  if (report !== null && report.ucp.length > 1) {
    warnings.push(
      `two copies of UCX in one process have hung before: ${report.ucp.join(", ")}; keep one of them off LD_LIBRARY_PATH`,
    );
  }
  for (const { name, version } of report?.fabric?.libraries ?? []) {
    const wanted = wantedVersions[name];
    if (wanted === undefined || version?.localeCompare(wanted[0], "en", { numeric: true }) !== -1) continue;
    warnings.push(`${name} is of version ${version}; for plug-in LIBFABRIC ${wanted[1]} or newer is suggested`);
  }
  return warnings;
}

const variablesOf = (env: NixlEnv): Readonly<Record<string, string>> =>
  Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) => (variableNames.test(name) && value ? [[name, value]] : [])),
  );

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
