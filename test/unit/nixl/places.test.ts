import { mkdirSync, mkdtempSync, rmSync, utimesSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type NixlHost, nixlDataDirectory, nixlPlaces } from "../../../src/nixl/places.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-places-"));
afterAll(() => rmSync(folder, { recursive: true }));

function made(...parts: string[]): string {
  const path = join(folder, ...parts);
  mkdirSync(path, { recursive: true });
  return path;
}

const host = (more: Partial<NixlHost> = {}): NixlHost => ({
  dataDirectory: join(folder, "data"),
  pythonSites: async () => [],
  loaderCache: async () => [],
  cudaMajor: undefined,
  ...more,
});

describe("the places of NIXL", () => {
  it("come in the order: installed by us (the last one first), virtual environment, Python, NIXL_PREFIX, NVIDIA's, the loader's", async () => {
    for (const [at, version] of ["1.4.1", "1.10.0", "1.5.1"].entries()) {
      made("data", version, ".nixl_cu13.mesonpy.libs");
      utimesSync(join(folder, "data", version), 1_000 + at, 1_000 + at);
    }
    made("venv/lib/python3.12/site-packages/.nixl_cu12.mesonpy.libs");
    made("site/.nixl.mesonpy.libs");
    const env = { VIRTUAL_ENV: join(folder, "venv"), NIXL_PREFIX: "/prefix", LD_LIBRARY_PATH: "relative:/loader" };
    const places = await nixlPlaces(
      env,
      host({
        pythonSites: async () => [join(folder, "site")],
        loaderCache: async () => ["/usr/lib/libnixl_capi.so.0"],
      }),
    );
    const firstOf = places.filter(({ file }) => file.endsWith("libnixl_capi.so") || file.startsWith("/usr"));
    expect(firstOf.map(({ file }) => file.replace(folder, ""))).toEqual([
      "/data/1.5.1/.nixl_cu13.mesonpy.libs/libnixl_capi.so",
      "/data/1.10.0/.nixl_cu13.mesonpy.libs/libnixl_capi.so",
      "/data/1.4.1/.nixl_cu13.mesonpy.libs/libnixl_capi.so",
      "/venv/lib/python3.12/site-packages/.nixl_cu12.mesonpy.libs/libnixl_capi.so",
      "/site/.nixl.mesonpy.libs/libnixl_capi.so",
      ...["lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"].map(
        (name) => `/prefix/${name}/libnixl_capi.so`,
      ),
      ...["lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"].map(
        (name) => `/opt/nvidia/nvda_nixl/${name}/libnixl_capi.so`,
      ),
      "/loader/libnixl_capi.so",
      "/usr/lib/libnixl_capi.so.0",
    ]);
    // Each folder is asked for both names.
    expect(places.filter(({ file }) => file.endsWith(".so.0"))).toHaveLength(places.length / 2 + 0.5);
  });

  it("begin with the CUDA that the driver speaks, with 13 where there is none", async () => {
    for (const cuda of ["cu12", "cu13"]) made("both", `.nixl_${cuda}.mesonpy.libs`);
    const site = async () => [join(folder, "both")];
    const first = async (cudaMajor: number | undefined) => {
      const dataDirectory = join(folder, "none");
      return (await nixlPlaces({}, host({ dataDirectory, pythonSites: site, cudaMajor })))[0]?.file;
    };
    expect(await first(undefined)).toContain("cu13");
    expect(await first(13)).toContain("cu13");
    expect(await first(12)).toContain("cu12");
  });

  it("are the one that KVT_NIXL_LIBRARY names and no other, a file or a folder", async () => {
    const path = made("named");
    expect(await nixlPlaces({ KVT_NIXL_LIBRARY: path }, host())).toEqual([
      { origin: "KVT_NIXL_LIBRARY", file: join(path, "libnixl_capi.so") },
      { origin: "KVT_NIXL_LIBRARY", file: join(path, "libnixl_capi.so.0") },
    ]);
    const file = join(folder, "absent.so");
    expect(await nixlPlaces({ KVT_NIXL_LIBRARY: file }, host())).toEqual([{ origin: "KVT_NIXL_LIBRARY", file }]);
  });

  it("of our own lie below XDG_DATA_HOME", () => {
    expect(nixlDataDirectory({ XDG_DATA_HOME: "/data" })).toBe("/data/kv-transceiver/nixl");
    expect(nixlDataDirectory({ XDG_DATA_HOME: "relative" })).toMatch(/^\/.*\/\.local\/share\/kv-transceiver\/nixl$/);
  });
});
