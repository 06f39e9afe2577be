import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { choosePaths, type PathWish } from "../../src/nixl/choice.ts";
import { Peers } from "../integration/transceiver/peer_process.ts";
import { bringNixl, setEnvironment } from "./nixl_wheel.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-libraries-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A shared object of the other architecture: from a compiler where there is one, else with that in its header. */
function foreignLibrary(): string {
  const file = join(folder, "foreign.so");
  const foreign = process.arch === "arm64" ? "x86_64" : "aarch64";
  const source = "int nixl_capi_is_stub(void) { return 0; }";
  const args = ["-x", "c", "-shared", "-fPIC", "-nostdlib", "-", "-o", file];
  const cross = spawnSync(`${foreign}-linux-gnu-g++`, args, { input: source });
  if (cross.status === 0) return file;
  execFileSync("c++", args, { input: source });
  const machine = Buffer.alloc(2);
  // EM_X86_64, EM_AARCH64; e_machine is the 16-bit word at byte 18.
  machine.writeUInt16LE(foreign === "x86_64" ? 62 : 183);
  execFileSync("dd", [`of=${file}`, "bs=1", "seek=18", "conv=notrunc", "status=none"], { input: machine });
  return file;
}

function textFile(name: string): string {
  const file = join(folder, name);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, "no library\n");
  return file;
}

const wish = (env: Readonly<Record<string, string>>, backend: PathWish["backend"] = "NIXL"): PathWish => ({
  backend,
  path: null,
  sameHost: true,
  loopback: false,
  env: { ...process.env, ...env },
});

/** Demanded it is refused with the sentence, else what is left is used and the sentence is a warning. */
async function expectRefused(env: Readonly<Record<string, string>>, sentence: RegExp): Promise<void> {
  const message = expect.stringMatching(sentence);
  await expect(choosePaths(wish(env))).rejects.toMatchObject({ code: "NIXL_UNUSABLE", message });
  const { sharedMemory, nixl, warnings } = await choosePaths(wish(env, "DEFAULT"));
  expect([sharedMemory, nixl]).toEqual([true, null]);
  expect(warnings).toEqual([expect.stringMatching(sentence)]);
}

describe("a file that KVT_NIXL_LIBRARY names", () => {
  it.each([
    [
      "of another architecture",
      foreignLibrary,
      /foreign\.so can't be used: .*foreign\.so: .*(machine|ELF|wrong|cannot open)/,
    ],
    ["that is text", () => textFile("text.so"), /text\.so can't be used: .*(invalid ELF header|file too short)/],
    ["that is not there", () => join(folder, "absent.so"), /KVT_NIXL_LIBRARY names \S+absent\.so, which is not there/],
    ["that is a directory without one", () => folder, /KVT_NIXL_LIBRARY names \S+libnixl_capi\.so, which is not there/],
  ])("%s is refused in one sentence, or done without", async (_what, make, sentence) => {
    await expectRefused({ KVT_NIXL_LIBRARY: make() }, sentence);
  });

  it("is refused as a library that is none, too, where a transceiver is opened with it", async () => {
    await using peers = new Peers();
    const restore = setEnvironment({ KVT_NIXL_LIBRARY: foreignLibrary() });
    try {
      await expect(peers.open({ config: { backend: "NIXL" } })).rejects.toThrow("NIXL_UNUSABLE");
      const other = await peers.open({ config: { backend: "UCX" } });
      expect(other.log).toMatch(/foreign\.so.*KV moves between processes of this host only/);
    } finally {
      restore();
    }
  }, 30_000);
});

describe("plug-ins that are not those of the library", () => {
  it("are refused in a sentence with both versions, whichever variable names them", async ({ skip }) => {
    const [ours, theirs] = [bringNixl("1.5.1"), bringNixl("1.4.1")];
    if (!("library" in ours)) return skip(ours.missing);
    if (!("library" in theirs)) return skip(theirs.missing);
    const plugins = join(dirname(theirs.library), "plugins");
    for (const variable of ["NIXL_PLUGINS_DIR", "NIXL_PLUGIN_DIR"]) {
      const env = { KVT_NIXL_LIBRARY: ours.library, [variable]: plugins };
      const message = expect.stringMatching(new RegExp(`${variable}=\\S+ are of NIXL 1\\.4\\.1, \\S+ is of 1\\.5\\.1`));
      await expect(choosePaths(wish(env))).rejects.toMatchObject({ code: "NIXL_UNUSABLE", message });
      await expect(choosePaths(wish(env, "DEFAULT"))).rejects.toMatchObject({ code: "NIXL_UNUSABLE", message });
    }
  }, 60_000);

  it("whose version can't be told are tried, and what does not work is refused in the loader's words", async ({
    skip,
  }) => {
    const ours = bringNixl("1.5.1");
    if (!("library" in ours)) return skip(ours.missing);
    const library = { KVT_NIXL_LIBRARY: ours.library };
    await expectRefused(
      { ...library, NIXL_PLUGIN_DIR: join(folder, "absent") },
      /plug-in UCX .*No such file.*searched were \S+absent, /,
    );
    textFile("broken/libplugin_UCX.so");
    await expectRefused(
      { ...library, NIXL_PLUGIN_DIR: join(folder, "broken") },
      /plug-in UCX .*libplugin_UCX\.so: (file too short|invalid ELF)/,
    );
    const plural = { ...library, XDG_CACHE_HOME: folder, NIXL_PLUGINS_DIR: join(folder, "broken") };
    await expectRefused(plural, /plug-in UCX .*libplugin_UCX\.so: (file too short|invalid ELF)/);
    for (const nothing of [join(folder, "absent"), folder]) {
      const env = { ...library, NIXL_PLUGINS_DIR: nothing };
      const message = expect.stringMatching(/NIXL_PLUGINS_DIR=\S+ holds no libplugin_\*\.so/);
      await expect(choosePaths(wish(env))).rejects.toMatchObject({ code: "NIXL_UNUSABLE", message });
    }
  }, 60_000);

  it("but of an unknown version may crash: that happens to a child", async ({ skip }) => {
    const ours = bringNixl("1.5.1");
    if (!("library" in ours)) return skip(ours.missing);
    const crashing = join(folder, "crashing");
    mkdirSync(crashing);
    const source = "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { abort(); }\n";
    const args = ["-x", "c", "-shared", "-fPIC", "-", "-o", join(crashing, "libplugin_UCX.so")];
    execFileSync("c++", args, { input: source });
    const env = { KVT_NIXL_LIBRARY: ours.library, NIXL_PLUGIN_DIR: crashing };
    await expectRefused(env, /a process that tried \S+libnixl_capi\.so ended with SIGABRT/);
  }, 60_000);
});
