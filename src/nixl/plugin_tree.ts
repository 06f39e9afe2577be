import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { KvError } from "../errors.ts";
import type { NixlEnv } from "./places.ts";

export interface PluginMapping {
  /** What NIXL_PLUGIN_DIR has to be; undefined: NIXL's own directory. */
  readonly directory: string | undefined;
  readonly warnings: readonly string[];
}

const isPlugin = (name: string): boolean => /^libplugin_\w+\.so$/.test(name);

/**
 * Maps NIXL_PLUGINS_DIR, which NIXL does not read, to NIXL_PLUGIN_DIR, which it does and which replaces its own directory (S77). The two
 * are merged as links in a tree of the wheel's shape, because plug-ins look for their libraries from where the link lies.
 * @param library libnixl_capi.so, links resolved
 * @throws KvError NIXL_UNUSABLE: a directory without plug-ins, or in either variable with those of another NIXL version (S74)
 */
export function mapPlugins(env: NixlEnv, library: string): PluginMapping {
  const { NIXL_PLUGIN_DIR: single = "", NIXL_PLUGINS_DIR: merged = "" } = env;
  if (single !== "") {
    const { why } = compareVersions("NIXL_PLUGIN_DIR", resolve(single), library);
    if (why !== undefined) throw new KvError("NIXL_UNUSABLE", { why });
  }
  if (merged === "") return { directory: undefined, warnings: [] };
  if (single !== "") {
    const same = resolve(single) === resolve(merged);
    const text = `NIXL_PLUGINS_DIR=${merged} is ignored: NIXL_PLUGIN_DIR=${single} is set too, and that is what NIXL reads`;
    return { directory: undefined, warnings: same ? [] : [text] };
  }
  const own = pluginsOf(merged);
  if (own.length === 0) {
    throw new KvError("NIXL_UNUSABLE", { why: `NIXL_PLUGINS_DIR=${merged} holds no libplugin_*.so` });
  }
  const { why, warning } = compareVersions("NIXL_PLUGINS_DIR", resolve(merged), library);
  if (why !== undefined) throw new KvError("NIXL_UNUSABLE", { why });
  return { directory: pluginTree(own, library, env), warnings: warning === undefined ? [] : [warning] };
}

/** Of a wheel: folders beside the library's own with what it and its plug-ins need. */
export function dependencyFolders(library: string): readonly string[] {
  const above = dirname(dirname(library));
  if (!existsSync(above)) return [];
  const names = readdirSync(above).filter((name) => name.startsWith("nixl") && name.endsWith(".libs"));
  return names.map((name) => join(above, name));
}

function pluginsOf(directory: string): readonly string[] {
  try {
    return readdirSync(directory)
      .filter(isPlugin)
      .map((name) => join(resolve(directory), name));
  } catch {
    return [];
  }
}

/** A plug-in of another version loads and then breaks: structs changed while the number that is checked did not. */
function compareVersions(
  variable: "NIXL_PLUGIN_DIR" | "NIXL_PLUGINS_DIR",
  directory: string,
  library: string,
): { readonly why?: string; readonly warning?: string } {
  const ours = nixlVersion(dirname(library));
  const theirs = nixlVersion(dirname(directory));
  if (ours === undefined || theirs === undefined) {
    const text = `the NIXL version of the plug-ins in ${directory} can't be told; they must be of ${ours ?? "the version of"} ${library}`;
    return { warning: text };
  }
  if (ours === theirs) return {};
  return { why: `the plug-ins in ${variable}=${directory} are of NIXL ${theirs}, ${library} is of ${ours}` };
}

/** The version in the bytes of libnixl_common.so; undefined when there is no such file, or it names none or several. */
export function nixlVersion(folder: string): string | undefined {
  const file = join(folder, "libnixl_common.so");
  if (!existsSync(file)) return undefined;
  const found = readFileSync(file, "latin1").match(/\0\d{1,3}\.\d{1,3}\.\d{1,3}(?=\0)/g) ?? [];
  const versions = new Set(found.map((text) => text.slice(1)));
  return versions.size === 1 ? [...versions][0] : undefined;
}

/** `T/a/plugins` with links to all plug-ins, and `T/nixl_cuXX.libs` beside it; kept, as it is a function of what it links. */
function pluginTree(own: readonly string[], library: string, env: NixlEnv): string {
  const home = dirname(library);
  const links = new Map<string, string>();
  for (const file of [...pluginsOf(join(home, "plugins")), ...own]) links.set(join("a/plugins", basename(file)), file);
  for (const folder of dependencyFolders(library)) links.set(basename(folder), folder);
  const content = JSON.stringify([...links]);
  const root = join(cacheDirectory(env), createHash("sha256").update(content).digest("hex").slice(0, 16));
  if (!existsSync(root)) {
    mkdirSync(dirname(root), { recursive: true, mode: 0o700 });
    const draft = mkdtempSync(`${root}.`);
    mkdirSync(join(draft, "a/plugins"), { recursive: true });
    for (const [link, target] of links) symlinkSync(target, join(draft, link));
    try {
      renameSync(draft, root);
    } catch (error) {
      rmSync(draft, { recursive: true });
      if (!existsSync(root)) throw error;
    }
  }
  return join(root, "a/plugins");
}

/** The user's own: what lies here is loaded as code. */
function cacheDirectory(env: NixlEnv): string {
  const { XDG_CACHE_HOME: cache } = env;
  return join(cache?.startsWith("/") ? cache : join(homedir(), ".cache"), "kv-transceiver/plugins");
}
