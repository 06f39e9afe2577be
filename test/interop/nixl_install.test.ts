import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { main } from "../../src/cli/main.ts";
import { choosePaths } from "../../src/nixl/choice.ts";
import { capturedTerminal } from "../unit/cli/captured_terminal.ts";
import { bringNixl, libfabricEnvironment } from "./nixl_wheel.ts";

const data = mkdtempSync(join(tmpdir(), "kvt-nixl-home-"));
afterAll(() => rmSync(data, { recursive: true }));

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";
/** Of the user's environment, only what pip and Node need. */
const env = { ...process.env, XDG_DATA_HOME: data, XDG_CACHE_HOME: join(data, "cache"), LD_LIBRARY_PATH: "" };

async function kvt(argv: readonly string[], more: Readonly<Record<string, string>> = {}) {
  const terminal = capturedTerminal({ ...env, ...more });
  const code = await main(argv, terminal);
  return { code, out: terminal.out(), err: terminal.err() };
}

describe("kvt nixl install and kvt doctor", () => {
  it.skipIf(library === "")(
    `bring NIXL, keep its libraries only, and find it${without}`,
    async () => {
      const installed = await kvt(["nixl", "install", "--version", "1.5.1"]);
      expect(installed).toMatchObject({ code: 0, err: expect.stringContaining("downloading nixl-cu13==1.5.1\n") });
      const home = join(data, "kv-transceiver/nixl/1.5.1");
      expect(installed.out).toContain(`NIXL 1.5.1 is in ${home} and works`);
      const kept = readdirSync(home).sort();
      expect(kept).toEqual([".nixl_cu13.mesonpy.libs", "nixl_cu13-1.5.1.dist-info", "nixl_cu13.libs"]);
      expect(readdirSync(dirname(home))).toEqual(["1.5.1"]);

      const { code, out } = await kvt(["doctor", "--json"]);
      const report = JSON.parse(out);
      expect(Object.keys(report)).toEqual(["host", "nixl", "cuda", "paths", "problems"]);
      expect(report.problems).toEqual([]);
      expect(code).toBe(0);
      expect(report.nixl.library).toMatchObject({ origin: "kvt nixl install", version: "1.5.1", trial: { why: null } });
      expect(report.nixl.ucx.version).toMatch(/^1\.\d+\.\d+$/);
      expect(report.nixl.ucx.transports.length).toBeGreaterThan(0);
      const text = await kvt(["doctor"]);
      expect(text.out).toContain("✓ plug-in UCX works");
      expect(text.out).toMatch(/· LIBFABRIC: libfabric\.so\.1: cannot open shared object file/);
    },
    300_000,
  );

  it.skipIf(library === "")(`use plug-ins of NIXL_PLUGINS_DIR beside NIXL's own${without}`, async () => {
    // UCX from a folder that holds it alone: as a plain link it would not find its libraries.
    const plugins = join(data, "own");
    mkdirSync(plugins);
    symlinkSync(join(dirname(library), "plugins/libplugin_UCX.so"), join(plugins, "libplugin_UCX.so"));
    const { code, out } = await kvt(["doctor", "--json"], { KVT_NIXL_LIBRARY: library, NIXL_PLUGINS_DIR: plugins });
    const report = JSON.parse(out);
    expect([code, report.problems]).toEqual([0, []]);
    expect(report.nixl.library.pluginDirectory).toContain("kv-transceiver/plugins/");
    expect(report.nixl.library.trial.why).toBeNull();
    expect(report.nixl.library.plugins.map(({ name }: { name: string }) => name)).toContain("POSIX");
  });

  it.skipIf(library === "")(
    `exit with 1 when UCX runs in the place of the chosen plug-in, with the words of a worker's health${without}`,
    async () => {
      const chosen = { KVT_NIXL_LIBRARY: library, TRTLLM_NIXL_KVCACHE_BACKEND: "LIBFABRIC" };
      const { code, out } = await kvt(["doctor"], chosen);
      expect(code).toBe(1);
      expect(out).toMatch(
        /✗ degraded: UCX instead of LIBFABRIC: plug-in LIBFABRIC can't be loaded: .*libfabric\.so\.1: cannot open shared object file.*searched were \/.*kvt nixl install --with-libfabric/,
      );
      // What a worker would run all the same.
      expect(out).toMatch(/✓ plug-in UCX works/);
      const { nixl } = JSON.parse((await kvt(["doctor", "--json"], chosen)).out);
      expect(nixl.degraded).toMatch(/^UCX instead of LIBFABRIC: /);
      const { degraded, warnings } = await choosePaths({
        ...{ backend: "NIXL", path: null, sameHost: true, loopback: true },
        env: { ...env, ...chosen },
      });
      expect([degraded, warnings]).toEqual([nixl.degraded, [`degraded: ${nixl.degraded}`]]);
    },
  );

  it("tell which libfabric there is, its providers and which one NIXL takes, and try LIBFABRIC where it is chosen", async ({
    skip,
  }) => {
    const fabric = libfabricEnvironment("1.4.1");
    if (fabric.missing !== undefined) skip(fabric.missing);
    const { code, out } = await kvt(["doctor", "--json"], fabric.env);
    const { nixl, problems } = JSON.parse(out);
    expect([code, problems, nixl.degraded]).toEqual([0, [], null]);
    expect(nixl.library.trial).toMatchObject({ plugin: "LIBFABRIC", why: null });
    expect(nixl.fabric).toMatchObject({ takes: "tcp", why: null });
    expect(nixl.fabric.providers).toContain("tcp");
    const named = (name: string) => nixl.fabric.libraries.find((library: { name: string }) => library.name === name);
    expect(named("libfabric.so.1")).toMatchObject({ why: null, version: expect.stringMatching(/^\d+\.\d+$/) });
    expect(named("libhwloc.so.15").file).toContain("libhwloc.so.15");
    const text = (await kvt(["doctor"], fabric.env)).out;
    expect(text).toMatch(/providers of libfabric: tcp.*; NIXL takes tcp/);
    const none = await kvt(["doctor"], { ...fabric.env, FI_PROVIDER: "efa" });
    expect(none.code).toBe(1);
    expect(none.out).toMatch(/libfabric has no provider: fi_getinfo: No data available \(FI_PROVIDER hides/);
    expect(none.out).toMatch(/plug-in LIBFABRIC does not work: /);
  }, 60_000);

  it("exit with 1 and name the library of KVT_NIXL_LIBRARY that is not there", async () => {
    const { code, out } = await kvt(["doctor"], { KVT_NIXL_LIBRARY: "/absent/libnixl_capi.so" });
    expect(code).toBe(1);
    expect(out).toContain("KVT_NIXL_LIBRARY names /absent/libnixl_capi.so, which is not there");
    const json = await kvt(["doctor", "--json"], { KVT_NIXL_LIBRARY: "/absent/libnixl_capi.so" });
    expect(JSON.parse(json.out)).toMatchObject({ nixl: { library: null }, problems: [expect.any(String)] });
  });

  it("say in one sentence what is wrong with a version, a command or pip", async () => {
    expect(await kvt(["nixl", "install", "--version", "one"])).toMatchObject({ code: 2 });
    expect(await kvt(["nixl", "remove"])).toMatchObject({ code: 2, err: expect.stringContaining("kvt nixl install") });
    const newer = await kvt(["nixl", "install", "--version", "1.5.1", "--with-libfabric"]);
    expect(newer).toMatchObject({ code: 2, err: expect.stringContaining("take --version 1.4.1") });
    const noPython = await kvt(["nixl", "install"], { PATH: "/nowhere" });
    expect(noPython.code).toBe(1);
    expect(noPython.err).toMatch(
      /NIXL 1\.5\.1 was not installed: pip can't download nixl-cu13==1\.5\.1: python3 can't be started/,
    );
  });
});
