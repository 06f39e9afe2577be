import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../../..", import.meta.url));
let path: string;

/** A PATH with Node and nothing else. */
beforeEach(() => {
  path = mkdtempSync(join(tmpdir(), "kvt-path-"));
  symlinkSync(process.execPath, join(path, "node"));
});
afterEach(() => rmSync(path, { recursive: true, force: true }));

function runScript(name: string) {
  const env = { PATH: path, HOME: path };
  const child = spawnSync(process.execPath, [join(root, "scripts", name)], { cwd: root, env, encoding: "utf8" });
  return { code: child.status, lines: `${child.stdout}${child.stderr}`.trim().split("\n") };
}

describe("a build on a machine that lacks a tool", () => {
  it.each(["native.mjs", "start.mjs", "test.mjs"])("%s names a missing compiler and the remedy in one line", (name) => {
    const { code, lines } = runScript(name);
    expect(code).toBe(1);
    expect(lines).toEqual([expect.stringMatching(/^A C\+\+ compiler is missing: install .*apt install g\+\+ make/)]);
  });

  it("names a missing make", () => {
    writeFileSync(join(path, "c++"), "#!/bin/sh\nexit 0\n", { mode: 0o755 });
    const { code, lines } = runScript("native.mjs");
    expect(code).toBe(1);
    expect(lines).toEqual([expect.stringMatching(/^`make` is missing: install it/)]);
  });

  it("names a compiler that is too old for C++20", () => {
    writeFileSync(join(path, "c++"), "#!/bin/sh\nexit 1\n", { mode: 0o755 });
    writeFileSync(join(path, "make"), "#!/bin/sh\nexit 0\n", { mode: 0o755 });
    const { code, lines } = runScript("native.mjs");
    expect(code).toBe(1);
    expect(lines).toEqual([expect.stringMatching(/can't compile C\+\+20: install g\+\+ 11 or newer/)]);
  });
});
