import { existsSync } from "node:fs";
import { KvError } from "../errors.ts";
import type { NativeNixlReport } from "../native/nixl_binding.ts";
import { type NixlEnv, type NixlHost, type NixlPlace, nixlPlaces, systemHost } from "./places.ts";
import { mapPlugins } from "./plugin_tree.ts";
import { type NixlProbe, probeNixl } from "./probe.ts";

/** A place that was looked at and is not used. */
export interface NixlMiss extends NixlPlace {
  readonly why: string;
}

export interface NixlSearch {
  /** The first library that works; undefined when none does. */
  readonly found:
    | { readonly place: NixlPlace; readonly report: NativeNixlReport; readonly said: readonly string[] }
    | undefined;
  readonly missed: readonly NixlMiss[];
}

export interface NixlSearchOptions {
  readonly env: NixlEnv;
  /** Tried with a transfer. */
  readonly plugin: string;
  readonly allPlugins?: boolean;
  /** What plug-in LIBFABRIC needs is looked at. */
  readonly fabric?: boolean;
  readonly host?: NixlHost;
  /** @internal */
  readonly probe?: typeof probeNixl;
}

/**
 * Looks for a NIXL that can be loaded, in the order of spec nixl.md section 2.1; each candidate is tried in a child process. One that the
 * user named with KVT_NIXL_LIBRARY is the only candidate.
 */
export async function searchNixl(options: NixlSearchOptions): Promise<NixlSearch> {
  const { env, plugin, allPlugins = false, fabric = false, host = systemHost(env), probe = probeNixl } = options;
  const missed: NixlMiss[] = [];
  for (const place of await nixlPlaces(env, host)) {
    if (!existsSync(place.file)) {
      missed.push({ ...place, why: "no such file" });
      continue;
    }
    const answer: NixlProbe = await probe({ library: place.file, plugin, allPlugins, fabric }, env);
    if ("report" in answer) return { found: { place, report: answer.report, said: answer.said }, missed };
    missed.push({ ...place, why: answer.why });
  }
  return { found: undefined, missed };
}

/**
 * The same with the plug-ins that will be loaded: those of NIXL_PLUGINS_DIR may not be those that the library brings.
 * @throws KvError NIXL_UNUSABLE: plug-ins of NIXL_PLUGINS_DIR that can't be taken
 */
export async function searchMapped(options: NixlSearchOptions, search = searchNixl): Promise<NixlSearch> {
  const { env } = options;
  const first = await search(options);
  if (first.found === undefined || !env.NIXL_PLUGINS_DIR) return first;
  const { directory } = mapPlugins(env, first.found.report.file);
  if (directory === undefined) return first;
  const mapped = { ...env, NIXL_PLUGIN_DIR: directory, KVT_NIXL_LIBRARY: first.found.place.file };
  const second = await search({ ...options, env: mapped });
  const found = second.found && { ...second.found, place: first.found.place };
  return { found, missed: [...first.missed, ...second.missed] };
}

/** What to throw when a search found nothing: a library that is there and broken is another matter than none. */
export function nothingFound({ missed }: NixlSearch): KvError {
  const broken = missed.filter(({ why }) => why !== "no such file");
  const named = missed.find(({ origin }) => origin === "KVT_NIXL_LIBRARY");
  if (broken.length > 0) return new KvError("NIXL_UNUSABLE", { why: broken.map(({ why }) => why).join("; ") });
  if (named) return new KvError("NIXL_UNUSABLE", { why: `KVT_NIXL_LIBRARY names ${named.file}, which is not there` });
  return new KvError("NIXL_NOT_FOUND", { tried: missed.map(({ file }) => file).join(", ") });
}
