import { beforeEach, describe, expect, it } from "vitest";
import type { NativeNixlReport } from "../../../src/native/nixl_binding.ts";
import { choosePaths, forgetSearches, type PathWish, whyNoLibfabric } from "../../../src/nixl/choice.ts";
import type { NixlSearch, NixlSearchOptions } from "../../../src/nixl/search.ts";

const LIBRARY = "/nixl/libnixl_capi.so";
let searches = 0;
const report = (libfabric: string | null): NativeNixlReport => ({
  file: LIBRARY,
  version: "1.5.1",
  memoryViews: true,
  pluginDirectory: "/nixl/plugins",
  preloaded: [],
  plugins: [
    { name: "UCX", file: "/nixl/plugins/libplugin_UCX.so", why: null },
    { name: "LIBFABRIC", file: "/nixl/plugins/libplugin_LIBFABRIC.so", why: libfabric },
  ],
  fabric: null,
  ucp: [],
  trial: null,
});
const found =
  (libfabric: string | null = "libfabric.so.1: cannot open shared object file") =>
  async (_options: NixlSearchOptions): Promise<NixlSearch> => {
    searches++;
    return {
      found: { place: { origin: "Python", file: LIBRARY }, report: report(libfabric), said: [] },
      missed: [],
    };
  };
const none = async (): Promise<NixlSearch> => ({
  found: undefined,
  missed: [{ origin: "Python", file: LIBRARY, why: "no such file" }],
});

const wish = (more: Partial<PathWish> = {}): PathWish => ({
  backend: "DEFAULT",
  path: null,
  sameHost: true,
  loopback: false,
  env: {},
  ...more,
});

beforeEach(() => {
  forgetSearches();
  searches = 0;
});

describe("the choice of paths", () => {
  it("looks for NIXL only where something could come of it", async () => {
    for (const idle of [wish({ loopback: true }), wish({ path: "shared_memory", backend: "NIXL" })]) {
      const choice = await choosePaths(idle, found());
      expect(choice).toEqual({ sharedMemory: true, nixl: null, warnings: [], degraded: null });
    }
    expect(searches).toBe(0);
    for (const busy of [wish(), wish({ loopback: true, backend: "UCX" }), wish({ loopback: true, backend: "NIXL" })]) {
      expect(await choosePaths(busy, found())).toMatchObject({
        sharedMemory: true,
        nixl: { library: LIBRARY, version: "1.5.1", plugin: "UCX", direct: true, staged: true },
        warnings: [],
      });
    }
    // All three had the same environment.
    expect(searches).toBe(1);
  });

  it("leaves shared memory out when another path is forced or same_host is false", async () => {
    const paths = [wish({ path: "nixl_direct" }), wish({ path: "nixl_staged" })];
    for (const forced of [...paths, wish({ sameHost: false, loopback: true })]) {
      expect(await choosePaths(forced, found())).toMatchObject({ sharedMemory: false, nixl: { library: LIBRARY } });
      forgetSearches();
      await expect(choosePaths(forced, none)).rejects.toMatchObject({ code: "NIXL_NOT_FOUND" });
      forgetSearches();
    }
  });

  it("sets what UCX has to have before it is loaded, unless the user has", async () => {
    const plain = await choosePaths(wish(), found());
    expect(plain.nixl?.environment).toEqual({ UCX_DEBUG_SIGNO: "0", UCX_MEM_EVENTS: "n" });
    const own = await choosePaths(wish({ env: { UCX_MEM_EVENTS: "y" } }), found());
    expect(own.nixl?.environment).toEqual({ UCX_DEBUG_SIGNO: "0", UCX_MEM_EVENTS: "y" });
  });

  it.each([
    ["DEFAULT", {}, "warns"],
    ["DEFAULT", { KVT_NIXL_FALLBACK: "0" }, "throws"],
    ["UCX", {}, "warns"],
    ["UCX", { KVT_NIXL_FALLBACK: "0" }, "throws"],
    ["NIXL", {}, "throws"],
    ["NIXL", { KVT_NIXL_FALLBACK: "1" }, "warns"],
  ] as const)("without any NIXL, backend %s with %j %s", async (backend, env, what) => {
    const choice = choosePaths(wish({ backend, env }), none);
    if (what === "throws") {
      await expect(choice).rejects.toMatchObject({ code: "NIXL_NOT_FOUND" });
    } else {
      const { sharedMemory, nixl, warnings } = await choice;
      expect([sharedMemory, nixl, warnings.length]).toEqual([true, null, 1]);
      expect(warnings[0]).toMatch(/KV moves between processes of this host only.*kvt nixl install/);
    }
  });

  it("takes UCX for a plug-in that there is not, with the allowed names, and not with KVT_NIXL_FALLBACK=0", async () => {
    const env = { TRTLLM_NIXL_KVCACHE_BACKEND: "mooncake" };
    const { nixl, warnings } = await choosePaths(wish({ env }), found());
    expect(nixl?.plugin).toBe("UCX");
    expect(warnings).toEqual([expect.stringMatching(/=mooncake is no plug-in .*UCX and LIBFABRIC are; UCX is used/)]);
    const strict = choosePaths(wish({ env: { ...env, KVT_NIXL_FALLBACK: "0" } }), found());
    await expect(strict).rejects.toMatchObject({ code: "NIXL_FAILED" });
  });

  it("takes UCX for LIBFABRIC with what the loader says and the remedy, is degraded then, and backend UCX never asks", async () => {
    const env = { TRTLLM_NIXL_KVCACHE_BACKEND: "LIBFABRIC", LD_LIBRARY_PATH: "/fabric/lib:/cuda/lib" };
    const { nixl, warnings, degraded } = await choosePaths(wish({ env }), found());
    expect(nixl?.plugin).toBe("UCX");
    expect(warnings).toEqual([`degraded: ${degraded}`]);
    expect(degraded).toMatch(
      /^UCX instead of LIBFABRIC: plug-in LIBFABRIC can't be loaded: libfabric\.so\.1: cannot open.*; searched were \/nixl\/plugins, \/nixl, \/fabric\/lib, \/cuda\/lib, the loader's own directories.*kvt nixl install --with-libfabric.*NIXL_PLUGINS_DIR/,
    );
    const forced = await choosePaths(wish({ env, backend: "UCX" }), found());
    expect([forced.degraded, forced.warnings]).toEqual([null, []]);
    const strict = choosePaths(wish({ env: { ...env, KVT_NIXL_FALLBACK: "0" } }), found());
    await expect(strict).rejects.toMatchObject({
      code: "NIXL_FAILED",
      message: expect.stringContaining("libfabric.so.1"),
    });
  });

  it.each([
    [
      ["libfabric.so.1", "libhwloc.so.15"],
      /libfabric\.so\.1: absent; libhwloc\.so\.15: absent; searched were \/nixl\/plugins, \/nixl, \/fabric, the loader's/,
      /--with-libfabric/,
    ],
    [
      ["libfabric.so.1", "libcuda.so.1"],
      /libfabric\.so\.1: absent; libcuda\.so\.1: absent/,
      /--with-libfabric.*NVIDIA's driver/,
    ],
    [
      ["libcuda.so.1"],
      /loaded: libcuda\.so\.1: absent; searched/,
      /\(ldconfig -p\)\. libcuda\.so\.1 comes with NVIDIA's driver/,
    ],
  ])("names all that LIBFABRIC lacks, %j, where it was looked for, and what helps", (names, lacks, remedy) => {
    const libraries = [...names, "libnuma.so.1"].map((name) => {
      const there = name === "libnuma.so.1";
      return { name, file: there ? `/usr/lib/${name}` : null, version: null, why: there ? null : `${name}: absent` };
    });
    const lacking = { ...report(`${names[0]}: absent`), fabric: { libraries, providers: [], why: null } };
    const why = whyNoLibfabric(lacking, { LD_LIBRARY_PATH: "/fabric" });
    expect(why).toMatch(lacks);
    expect(why).toMatch(remedy);
  });

  it("tells a libfabric that is too old in the loader's words, and where a plug-in file is wanted", () => {
    const old = "libfabric.so.1: version `FABRIC_1.10' not found (required by libplugin_LIBFABRIC.so)";
    const libraries = [{ name: "libfabric.so.1", file: "/usr/lib/libfabric.so.1", version: "2.5", why: null }];
    const why = whyNoLibfabric({ ...report(old), fabric: { libraries, providers: ["tcp"], why: null } }, {});
    expect(why).toContain(`can't be loaded: ${old}; searched were `);
    expect(whyNoLibfabric({ ...report(null), plugins: [] }, {})).toMatch(
      /no libplugin_LIBFABRIC\.so; searched were \/nixl\/plugins/,
    );
    expect(whyNoLibfabric(report(null), {})).toBeNull();
  });

  it("opens the one way of reading that is forced, and both otherwise", async () => {
    for (const [path, direct, staged] of [
      ["nixl_direct", true, false],
      ["nixl_staged", false, true],
      [null, true, true],
    ] as const) {
      expect((await choosePaths(wish({ path }), found())).nixl).toMatchObject({ plugin: "UCX", direct, staged });
    }
  });

  it("takes LIBFABRIC where it can be loaded, always through staging slots, without warning", async () => {
    const env = { TRTLLM_NIXL_KVCACHE_BACKEND: "libfabric" };
    for (const path of [null, "nixl_staged"] as const) {
      const { nixl, warnings, degraded } = await choosePaths(wish({ env, path }), found(null));
      expect(nixl).toMatchObject({ plugin: "LIBFABRIC", direct: false, staged: true });
      expect([warnings, degraded]).toEqual([[], null]);
    }
  });

  it("refuses nixl_direct with LIBFABRIC in one sentence, also where the plug-in works", async () => {
    const env = { TRTLLM_NIXL_KVCACHE_BACKEND: "LIBFABRIC" };
    for (const libfabric of [null, "it is broken"]) {
      forgetSearches();
      await expect(choosePaths(wish({ env, path: "nixl_direct" }), found(libfabric))).rejects.toMatchObject({
        code: "NIXL_FAILED",
        message: expect.stringMatching(/nixl_direct does not go with plug-in LIBFABRIC.*staging slots/),
      });
    }
  });
});
