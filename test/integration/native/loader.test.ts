import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { isKvError, type KvError } from "../../../src/errors.ts";
import { mirrorVersion } from "../../../src/native/binding.ts";
import { loadNative, loadNativeFrom } from "../../../src/native/loader.ts";

const require = createRequire(import.meta.url);
const realAddon = fileURLToPath(new URL("../../../build/Release/kv_transceiver.node", import.meta.url));

let root: string;
let addon: string;
let cache: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "kvt-loader-"));
  addon = join(root, "build/Release/kv_transceiver.node");
  cache = join(root, "cache");
  mkdirSync(join(root, "build/Release"), { recursive: true });
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** A small addon in C; `body` runs when it is loaded, `version` is its mirrorVersion (null: it exports none). */
function compileAddon(body: string, version: number | null): void {
  const source = join(root, "addon.c");
  const exported =
    version === null
      ? ""
      : `napi_value v; napi_create_int32(env, ${version}, &v); napi_set_named_property(env, exports, "mirrorVersion", v);`;
  writeFileSync(
    source,
    `#include <node_api.h>
     #include <stdio.h>
     #include <stdlib.h>
     #include <unistd.h>
     NAPI_MODULE_INIT() { (void)env; ${body}; ${exported} return exports; }\n`,
  );
  const headers = createRequire(require.resolve("cmake-js/package.json"))("node-api-headers") as {
    include_dir: string;
  };
  execFileSync("c++", ["-x", "c", "-shared", "-fPIC", "-I", headers.include_dir, source, "-o", addon]);
}

function failure(): KvError {
  try {
    loadNativeFrom(root, cache);
  } catch (error) {
    if (isKvError(error)) return error;
    throw error;
  }
  throw new Error("the addon was loaded");
}

describe("loading the native addon", () => {
  it("gives the built addon, the same object each time", () => {
    expect(loadNative().mirrorVersion).toBe(mirrorVersion);
    expect(loadNative()).toBe(loadNative());
  });

  it("works at the vector level that KVT_VECTOR_LEVEL names", () => {
    const levelWith = (env: NodeJS.ProcessEnv): string => {
      const code = `process.stdout.write(require(${JSON.stringify(realAddon)}).vectorLevel)`;
      return execFileSync(process.execPath, ["-e", code], { env: { ...process.env, ...env }, encoding: "utf8" });
    };
    expect(levelWith({ KVT_VECTOR_LEVEL: "generic" })).toBe("generic");
    expect(levelWith({ KVT_VECTOR_LEVEL: "unheard-of" })).toBe(loadNative().vectorLevel);
  });

  it("says where it looked and how to build when there is none", () => {
    const error = failure();
    expect(error.code).toBe("NATIVE_NOT_FOUND");
    expect(error.message).toContain(join(root, "build/Release"));
    expect(error.remedy).toMatch(/1\. .*\n\s+2\. .*\n\s+3\. /);
  });

  it.each([
    ["an empty file", () => writeFileSync(addon, "")],
    ["a text file", () => writeFileSync(addon, "not a library\n")],
    ["the first half of the real addon", () => copyHead(realAddon, addon)],
  ])("refuses %s with a numbered list of remedies", (_, make) => {
    make();
    const error = failure();
    expect(error.code).toBe("NATIVE_BROKEN");
    expect(error.message).toContain(addon);
    expect(error.remedy).toMatch(/1\. .*\n\s+2\. .*\n\s+3\. /);
  });

  it("survives a binary that crashes its process, and names the signal", () => {
    compileAddon("abort()", mirrorVersion);
    const error = failure();
    expect(error.code).toBe("NATIVE_BROKEN");
    expect(error.message).toContain("SIGABRT");
  });

  it("survives a binary that exits its process", () => {
    compileAddon("_exit(0)", mirrorVersion);
    expect(failure().message).toContain("exit code 0");
  });

  it("refuses an addon built for another version of the interface, naming both", () => {
    compileAddon("", mirrorVersion + 1);
    expect(failure().message).toContain(`version ${mirrorVersion + 1} of the addon's interface`);
  });

  it("refuses a foreign addon", () => {
    compileAddon("", null);
    expect(failure().message).toContain("is not kv-transceiver's addon");
  });

  it("is not misled by what a binary prints while it loads", () => {
    compileAddon('puts("kv-transceiver says hello"); fflush(stdout)', mirrorVersion);
    expect(loadNativeFrom(root, cache).mirrorVersion).toBe(mirrorVersion);
  });
});

describe("the remembered verdict", () => {
  it("saves the second start a child process, until the file changes", () => {
    const marker = join(root, "loads");
    compileAddon(`FILE* f = fopen("${marker}", "a"); fputs("x", f); fclose(f)`, mirrorVersion);
    const load = (): number => {
      const before = sizeOf(marker);
      loadNativeFrom(root, cache);
      return sizeOf(marker) - before;
    };
    expect(load()).toBe(2); // the child and this process
    expect(load()).toBe(0); // remembered, and require() keeps the module
    utimesSync(addon, new Date(), new Date(Date.now() + 5_000));
    expect(load()).toBe(1); // the child again
  });

  it("is never kept for a broken binary", () => {
    writeFileSync(addon, "not a library\n");
    failure();
    expect(existsSync(cache) ? readdirSync(cache) : []).toEqual([]);
  });

  it("works without a writable cache", () => {
    copyFileSync(realAddon, addon);
    writeFileSync(cache, "a file where the folder should be");
    expect(loadNativeFrom(root, cache).mirrorVersion).toBe(mirrorVersion);
  });
});

function copyHead(from: string, to: string): void {
  const bytes = readFileSync(from);
  writeFileSync(to, bytes.subarray(0, bytes.length >> 1));
}

const sizeOf = (file: string): number => (existsSync(file) ? statSync(file).size : 0);
