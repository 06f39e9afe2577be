import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { NativeNixlReport } from "../../src/native/nixl_binding.ts";
import { probeNixl } from "../../src/nixl/probe.ts";
import { bringNixl } from "./nixl_wheel.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-nixl-"));
afterAll(() => rmSync(folder, { recursive: true }));

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";

async function report(...args: Parameters<typeof probeNixl>): Promise<NativeNixlReport> {
  const probe = await probeNixl(...args);
  if (!("report" in probe)) throw new Error(probe.why);
  return probe.report;
}

/** A shared object whose constructor runs `body`. */
function compileLibrary(name: string, body: string): string {
  const file = join(folder, name);
  const source = `#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) static void start(void) { ${body} }\n`;
  execFileSync("c++", ["-x", "c", "-shared", "-fPIC", "-", "-o", file], { input: source });
  return file;
}

describe("a probe of NIXL", () => {
  it.skipIf(library === "")(`tells version, plug-ins and what a READ took${without}`, async () => {
    const found = await report({ library, plugin: "UCX", allPlugins: true });
    expect(found).toMatchObject({ file: library, version: "1.5.1", memoryViews: true, preloaded: [] });
    expect(found.pluginDirectory).toBe(join(dirname(library), "plugins"));
    expect(found.plugins.find(({ name }) => name === "UCX")?.why).toBeNull();
    expect(found.plugins.map(({ name }) => name)).toContain("LIBFABRIC");
    expect(found.ucp).toHaveLength(1);
    expect(found.trial).toMatchObject({ plugin: "UCX", why: null, readBytes: 1 << 20 });
    expect(found.trial?.readMs).toBeGreaterThan(0);
  });

  it.skipIf(library === "")(`gives the loader's words for a plug-in that can't be loaded${without}`, async () => {
    writeFileSync(join(folder, "libplugin_UCX.so"), "no library");
    const env = { ...process.env, NIXL_PLUGIN_DIR: folder };
    const found = await report({ library, plugin: "UCX", allPlugins: false }, env);
    expect(found.plugins[0]?.why).toMatch(/libplugin_UCX\.so: (file too short|invalid ELF header)/);
    expect(found.trial?.why).toMatch(/plug-in UCX can't be loaded: .*libplugin_UCX\.so/);
  });

  it("names a library that is not there or is none", async () => {
    expect(await probeNixl({ library: join(folder, "absent.so"), allPlugins: false })).toEqual({
      why: expect.stringMatching(/absent\.so can't be used: it can't be opened: No such file/),
    });
    const text = join(folder, "text.so");
    writeFileSync(text, "no library");
    expect(await probeNixl({ library: text, allPlugins: false })).toEqual({
      why: expect.stringContaining(`${text} can't be used: `),
    });
  });

  it("survives a library that ends the process while it is loaded", async () => {
    const crashing = compileLibrary("crashing.so", "abort();");
    expect(await probeNixl({ library: crashing, allPlugins: false })).toEqual({
      why: expect.stringContaining(`a process that tried ${crashing} ended with SIGABRT`),
    });
    const leaving = compileLibrary("leaving.so", "_exit(7);");
    expect(await probeNixl({ library: leaving, allPlugins: false })).toEqual({
      why: expect.stringContaining("ended with code 7"),
    });
  });
});
