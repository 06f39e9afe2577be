#!/usr/bin/env node
// Packs what a host needs that has neither Node.js nor npm nor a compiler: node scripts/bundle.mjs [--out FILE] [--fast]
// The archive holds node, the package with its addon and JavaScript packages, tests and benches, the C++ tests, and NIXL where
// `kvt nixl install` has brought it. --fast: less compression. Use: docs/gpu.md.
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { main, run, step, Told } from "./steps.mjs";
import { onPath } from "./toolchain.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const NAME = `kv-transceiver-${version}-${process.platform}-${process.arch}`;

const folders = [
  "bin",
  "dist",
  "src",
  "test",
  "bench",
  "scripts",
  "examples",
  "docs",
  "native/cuda/images",
  "native/test",
];
const files = [
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "tsconfig.build.json",
  "vitest.config.ts",
  "biome.json",
  "README.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "LICENSE",
  "NOTICE",
  "models/tiny.gguf",
  "models/MODEL.md",
];
/** With their times: tests compare dist/ with src/. */
const COPY = { recursive: true, verbatimSymlinks: true, preserveTimestamps: true };
/** Of the packages for development, those that tests need; the others are tools for people. */
const leftOut = [
  "@biomejs",
  "@types",
  "prebuildify",
  "typescript",
  "openai",
  ".bin",
  "cmake-js",
  "node-addon-api",
  "node-api-headers",
];

const README = `# kv-transceiver ${version}, whole

Unpack it anywhere on a Linux host of the same processor; nothing is installed.

    bin/kvt demo              three processes, one answer: KV moves between them
    bin/kvt doctor            what this host has: GPUs, NIXL, memory
    bin/test                  the tests, those of GPUs included where there is one
    bin/test test/unit        some of them; arguments go to vitest
    bin/cpp-tests [NAME...]   the C++ tests
    bin/bench --only gpu      bench suites

docs/gpu.md says more.
`;

/** Each finds its own folder, wherever that was unpacked to. */
const launchers = {
  kvt: 'exec "$here/bin/node" "$here/app/bin/kvt.js" "$@"',
  test: 'cd "$here/app" && exec "$here/bin/node" node_modules/vitest/vitest.mjs run "$@"',
  bench: 'cd "$here/app" && exec "$here/bin/node" bench/run.mjs "$@"',
  "cpp-tests": [
    'cd "$here/app"; failed=0',
    "[ $# -gt 0 ] || set -- $(ls build-tests | grep '_test$')",
    'for name in "$@"; do echo "== $name"; "build-tests/$name" || failed=1; done; exit $failed',
  ].join("\n"),
};

async function collect(place, say) {
  const app = join(place, "app");
  const put = (name) => {
    mkdirSync(dirname(join(app, name)), { recursive: true });
    cpSync(join(root, name), join(app, name), COPY);
  };
  for (const name of [...folders, ...files]) if (existsSync(join(root, name))) put(name);
  say("packages");
  mkdirSync(join(app, "node_modules"));
  for (const name of readdirSync(join(root, "node_modules"))) {
    if (leftOut.includes(name) || name.startsWith(".kvt") || name === ".tsinfo") continue;
    cpSync(join(root, "node_modules", name), join(app, "node_modules", name), COPY);
  }
  say("programs");
  const addon = join(app, "build/Release/kv_transceiver.node");
  mkdirSync(dirname(addon), { recursive: true });
  await strip(join(root, "build/Release/kv_transceiver.node"), addon);
  for (const folder of ["build-tests", "build-bench"]) await programs(folder, app);
  mkdirSync(join(place, "bin"));
  await strip(process.execPath, join(place, "bin/node"));
  for (const [name, body] of Object.entries(launchers)) {
    const file = join(place, "bin", name);
    writeFileSync(
      file,
      `#!/bin/sh\nhere=$(cd "$(dirname "$0")/.." && pwd)\nexport PATH="$here/bin:$PATH" KVT_BUNDLE="$here"\n${body}\n`,
    );
    chmodSync(file, 0o755);
  }
  writeFileSync(join(place, "README.md"), README);
}

/** What was built there: executables and the libraries that they load. */
async function programs(folder, app) {
  const from = join(root, folder);
  if (!existsSync(from)) return;
  mkdirSync(join(app, folder));
  for (const name of readdirSync(from)) {
    const stat = lstatSync(join(from, name));
    if (stat.isFile() && (stat.mode & 0o111) !== 0) await strip(join(from, name), join(app, folder, name));
  }
}

const strip = (from, to) => run("strip", ["--strip-unneeded", "-o", to, from]);

await main(async () => {
  const args = process.argv.slice(2);
  const outAt = args.indexOf("--out");
  const out = resolve(outAt < 0 ? `${NAME}.tar.xz` : (args[outAt + 1] ?? ""));
  for (const tool of ["strip", "tar", "xz"]) if (!onPath(tool)) throw new Told(`${tool} was not found.`);
  for (const built of ["dist/index.js", "build/Release/kv_transceiver.node"])
    if (!existsSync(join(root, built))) throw new Told(`${built} is missing: run \`npm run build\` first.`);
  await step("bundle", async (say) => {
    const place = mkdtempSync(join(tmpdir(), "kvt-bundle-"));
    try {
      await collect(place, say);
      say("compressing");
      const env = { ...process.env, XZ_OPT: args.includes("--fast") ? "-1 -T0" : "-6 -T0" };
      await run("tar", ["-C", place, "--owner=0", "--group=0", "-cJf", out, "."], { env });
    } finally {
      rmSync(place, { recursive: true, force: true });
    }
    return `${out}, ${(statSync(out).size / 2 ** 20).toFixed(1)} MiB`;
  });
});
