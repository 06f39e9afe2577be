#!/usr/bin/env node
// Builds the addon with cmake-js: node scripts/native.mjs [rebuild] [--out DIR] [--copy-to DIR] [--CDNAME=VALUE ...]
//   --out DIR      build folder (default build); the addon is DIR/Release/kv_transceiver.node
//   --copy-to DIR  puts the addon into DIR as well (node-gyp and prebuildify expect it in build/Release)
// Needs no header download: package.json `binary.napi_versions` makes cmake-js use the Node-API headers that npm installed.
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { main, run, step, Told } from "./steps.mjs";
import { buildJobs, provideCmake, requireCompiler } from "./toolchain.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));

/** @returns {Promise<string>} the addon's path, relative to the working directory */
export async function buildNative({ out = join(root, "build"), copyTo, fresh = false, defines = [] } = {}) {
  const compiler = requireCompiler();
  const cmakeJs = findCmakeJs();
  return step("native addon", async (say) => {
    const cmake = await provideCmake(root, say);
    if (fresh || foreignBuild(out)) rmSync(out, { recursive: true, force: true });
    const args = [
      cmakeJs,
      "build",
      "--directory",
      root,
      "--out",
      out,
      "--cmake-path",
      cmake,
      "--cc",
      "cc",
      "--cxx",
      compiler,
      "--parallel",
      String(buildJobs()),
      ...defines,
    ];
    await run(process.execPath, args, {
      cwd: root,
      onLine: (line) => {
        const at = line.match(/^\[\s*(\d+%|\d+\/\d+)\]/);
        if (at) say(at[1]);
      },
    });
    const addon = join(out, "Release/kv_transceiver.node");
    if (!existsSync(addon))
      throw new Told(`The build ended without ${addon}: remove ${out} and run this again with KVT_VERBOSE=1.`);
    if (copyTo !== undefined && resolve(copyTo) !== join(out, "Release")) {
      mkdirSync(copyTo, { recursive: true });
      const target = join(copyTo, "kv_transceiver.node");
      rmSync(target, { force: true }); // a process may run from the old file: replace it, don't write into it
      copyFileSync(addon, target);
    }
    return relative(process.cwd(), addon);
  });
}

function findCmakeJs() {
  try {
    return createRequire(join(root, "package.json")).resolve("cmake-js/bin/cmake-js");
  } catch {
    throw new Told("The npm packages are missing: run `npm ci --ignore-scripts` (or `npm start`) first.");
  }
}

/** A build folder that was configured for another tree, or with tools that are gone: CMake refuses or misuses it. */
function foreignBuild(out) {
  const cacheFile = join(out, "CMakeCache.txt");
  if (!existsSync(cacheFile)) return false;
  const cache = readFileSync(cacheFile, "utf8");
  const value = (key) => cache.match(new RegExp(`^${key}:[A-Z]+=(.*)$`, "m"))?.[1] ?? "";
  if (resolve(value("CMAKE_HOME_DIRECTORY")) !== resolve(root)) return true;
  return [value("CMAKE_COMMAND"), value("CMAKE_CXX_COMPILER"), value("CMAKE_MAKE_PROGRAM")].some(
    (file) => file.startsWith("/") && !existsSync(file),
  );
}

function parse(argv) {
  const options = { defines: [] };
  for (let at = 0; at < argv.length; at += 1) {
    const arg = argv[at];
    if (arg === "--out") options.out = resolve(argv[++at]);
    else if (arg === "--copy-to") options.copyTo = resolve(argv[++at]);
    else if (arg === "rebuild") options.fresh = true;
    else if (arg.startsWith("--CD")) options.defines.push(arg);
    // node-gyp's own flags, given by prebuildify, say nothing that a Node-API build for this machine needs.
    else if (!/^--(target|devdir|arch|runtime|dist-url|release|build_v8_with_gn)(=|$)/.test(arg))
      throw new Told(`scripts/native.mjs doesn't know ${arg}`);
  }
  return options;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    await buildNative(parse(process.argv.slice(2)));
  });
}
