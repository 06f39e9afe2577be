import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { NativeNixlReport } from "../../../src/native/nixl_binding.ts";
import type { NixlHost } from "../../../src/nixl/places.ts";
import type { NixlProbe } from "../../../src/nixl/probe.ts";
import { type NixlSearchOptions, nothingFound, searchNixl } from "../../../src/nixl/search.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-search-"));
afterAll(() => rmSync(folder, { recursive: true }));

function library(name: string): string {
  const home = join(folder, name, ".nixl_cu13.mesonpy.libs");
  mkdirSync(home, { recursive: true });
  const file = join(home, "libnixl_capi.so");
  writeFileSync(file, "");
  return file;
}
const broken = library("broken");
const good = library("good");
const host: NixlHost = {
  dataDirectory: join(folder, "none"),
  pythonSites: async () => [join(folder, "broken"), join(folder, "good")],
  loaderCache: async () => [],
  cudaMajor: undefined,
};
const probe = async ({ library: file }: { readonly library: string }): Promise<NixlProbe> =>
  file === broken ? { why: `${file} is of another machine` } : { report: { file } as NativeNixlReport, said: [] };
const search = (env: NixlSearchOptions["env"], more: Partial<NixlSearchOptions> = {}) =>
  searchNixl({ env, plugin: "UCX", host, probe, ...more });

describe("the search for NIXL", () => {
  it("takes the first that works and keeps why the others before it are not used", async () => {
    const { found, missed } = await search({});
    expect(found?.place).toEqual({ origin: "Python", file: good });
    expect(missed).toEqual([
      { origin: "Python", file: broken, why: `${broken} is of another machine` },
      { origin: "Python", file: `${broken}.0`, why: "no such file" },
    ]);
  });

  it("looks nowhere else when the user names one, and says what is wrong with that", async () => {
    const named = await search({ KVT_NIXL_LIBRARY: broken });
    expect(named.found).toBeUndefined();
    expect(nothingFound(named)).toMatchObject({ code: "NIXL_UNUSABLE", message: expect.stringContaining(broken) });
    const absent = await search({ KVT_NIXL_LIBRARY: "/absent.so" });
    expect(nothingFound(absent).message).toBe(
      "NIXL can't be used: KVT_NIXL_LIBRARY names /absent.so, which is not there",
    );
  });

  it("tells a broken library from none, and for none where it looked and how to get it", async () => {
    const sites = async () => [join(folder, "broken")];
    expect(nothingFound(await search({}, { host: { ...host, pythonSites: sites } })).code).toBe("NIXL_UNUSABLE");
    const none = nothingFound(await search({}, { host: { ...host, pythonSites: async () => [] } }));
    expect(none.code).toBe("NIXL_NOT_FOUND");
    expect(none.message).toContain("/opt/nvidia/nvda_nixl/lib/libnixl_capi.so, ");
    expect(none.remedy).toContain("kvt nixl install");
  });
});
