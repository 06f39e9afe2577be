import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { mapPlugins } from "../../../src/nixl/plugin_tree.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-plugins-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A wheel's folders with the files that count here. */
function nixl(name: string, version: string, plugins: readonly string[]): { library: string; plugins: string } {
  const home = join(folder, name, ".nixl_cu13.mesonpy.libs");
  mkdirSync(join(home, "plugins"), { recursive: true });
  mkdirSync(join(folder, name, "nixl_cu13.libs"), { recursive: true });
  writeFileSync(join(home, "libnixl_common.so"), `\0text 9.9.9\0${version}\0more\0`);
  for (const plugin of plugins) writeFileSync(join(home, "plugins", `libplugin_${plugin}.so`), "");
  return { library: join(home, "libnixl_capi.so"), plugins: join(home, "plugins") };
}
const ours = nixl("ours", "1.5.1", ["UCX", "POSIX", "LIBFABRIC"]);
const same = nixl("same", "1.5.1", ["LIBFABRIC", "NEW"]);
const other = nixl("other", "1.4.1", ["LIBFABRIC"]);
const cache = join(folder, "cache");

describe("NIXL_PLUGINS_DIR", () => {
  it("becomes a tree of links in the shape of a wheel, in which its plug-ins win", () => {
    const env = { NIXL_PLUGINS_DIR: same.plugins, XDG_CACHE_HOME: cache };
    const { directory = "", warnings } = mapPlugins(env, ours.library);
    expect(warnings).toEqual([]);
    const links = Object.fromEntries(readdirSync(directory).map((name) => [name, readlinkSync(join(directory, name))]));
    expect(links).toEqual({
      "libplugin_LIBFABRIC.so": join(same.plugins, "libplugin_LIBFABRIC.so"),
      "libplugin_NEW.so": join(same.plugins, "libplugin_NEW.so"),
      "libplugin_POSIX.so": join(ours.plugins, "libplugin_POSIX.so"),
      "libplugin_UCX.so": join(ours.plugins, "libplugin_UCX.so"),
    });
    expect(readlinkSync(join(directory, "../../nixl_cu13.libs"))).toBe(join(folder, "ours/nixl_cu13.libs"));
    expect(mapPlugins(env, ours.library).directory).toBe(directory);
    expect(readdirSync(join(cache, "kv-transceiver/plugins"))).toHaveLength(1);
  });

  it("changes nothing when it is not set, or when NIXL's own variable is, with a warning when they differ", () => {
    expect(mapPlugins({}, ours.library)).toEqual({ directory: undefined, warnings: [] });
    const both = { NIXL_PLUGIN_DIR: ours.plugins, NIXL_PLUGINS_DIR: `${ours.plugins}/` };
    expect(mapPlugins(both, ours.library)).toEqual({ directory: undefined, warnings: [] });
    const differing = mapPlugins({ ...both, NIXL_PLUGINS_DIR: same.plugins }, ours.library);
    expect(differing.directory).toBeUndefined();
    expect(differing.warnings[0]).toMatch(/NIXL_PLUGINS_DIR=.* is ignored: NIXL_PLUGIN_DIR=/);
  });

  it("is refused with plug-ins of another NIXL version, and without any plug-in", () => {
    const refused = (directory: string): unknown => {
      try {
        return mapPlugins({ NIXL_PLUGINS_DIR: directory, XDG_CACHE_HOME: cache }, ours.library);
      } catch (error) {
        return error instanceof KvError ? `${error.code} ${error.message}` : error;
      }
    };
    expect(refused(other.plugins)).toMatch(/^NIXL_UNUSABLE .*are of NIXL 1\.4\.1, .* is of 1\.5\.1$/);
    expect(refused(join(folder, "ours"))).toMatch(/^NIXL_UNUSABLE .*holds no libplugin_\*\.so$/);
    expect(refused(join(folder, "absent"))).toMatch(/^NIXL_UNUSABLE .*holds no libplugin_\*\.so$/);
  });

  it("warns where the version of its plug-ins can't be told", () => {
    const alone = join(folder, "alone");
    mkdirSync(alone);
    writeFileSync(join(alone, "libplugin_LIBFABRIC.so"), "");
    const mapped = mapPlugins({ NIXL_PLUGINS_DIR: alone, XDG_CACHE_HOME: cache }, ours.library);
    expect(mapped.directory).toBeDefined();
    expect(mapped.warnings[0]).toContain("can't be told; they must be of 1.5.1");
  });
});
