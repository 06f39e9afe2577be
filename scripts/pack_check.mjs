// What a user of the npm package gets: packs it, installs the tarball into empty folders, and uses it there.
import { spawn } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { bareHome } from "./bare_home.mjs";
import { prepare, root } from "./prepare.mjs";
import { closingSummary, noCounts } from "./report.mjs";
import { main, run, step, Told } from "./steps.mjs";

/** A Node newer than ours, as a binary from npm. */
const CURRENT_NODE = `node-${process.platform}-${process.arch}`;
const INSTALLED = "node_modules/kv-transceiver";
const ROUTER_LIMIT_MS = 20_000;

/** Runs in the user's folder: the public way from import to blocks that moved. */
const LOAD_TEST = `
import assert from "node:assert/strict";
import { KvTransceiver, requestId } from "kv-transceiver";
const options = {
  layout: { layers: 2, kvHeads: 1, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "mha" },
  pool: { memory: "host", blocks: 4 },
};
const context = await KvTransceiver.open(options);
const generation = await KvTransceiver.open(options);
new Uint8Array(context.memory).fill(7);
const from = context.pool.allocate(2);
const to = generation.pool.allocate(2);
const sending = context.send({ requestId: requestId(1n), tokens: 64, blocks: from });
const report = await generation.receive({ state: sending.state, blocks: to }).done;
await sending.done;
assert.ok(report.bytes > 0);
const moved = new Uint8Array(generation.memory).filter((byte) => byte === 7).length;
assert.equal(moved, report.bytes);
for (const hold of [from, to]) hold.release();
await Promise.all([context.close(), generation.close()]);
console.log(report.bytes + " bytes moved on Node " + process.version);
`;

export async function checkPackage() {
  const counts = noCounts();
  const check = async (title, body) => {
    try {
      await step(title, body);
      counts.passed += 1;
    } catch (error) {
      counts.failed += 1;
      counts.failures.push(`package: ${title}`);
      console.log(error instanceof Told ? error.message : error);
    }
  };
  const place = mkdtempSync(join(tmpdir(), "kvt-pack-"));
  try {
    const tarball = await step("npm pack", () => pack(place));
    const fromSource = join(place, "from-source");
    await check("install from source, with an empty home and no nodedir", () =>
      install(fromSource, tarball, bareHome(place)),
    );
    await check("import, open and move blocks", () => loadTest(fromSource, process.execPath));
    await check(`import, open and move blocks on a current Node`, async () =>
      loadTest(fromSource, await currentNode(place)),
    );
    const scriptless = join(place, "scriptless");
    const env = { ...bareHome(place), PATH: pathOfNodeOnly(place) };
    await check("install without scripts", () => install(scriptless, tarball, bareHome(place), ["--ignore-scripts"]));
    await check("its install script says in one sentence what works without a compiler", () =>
      installScript(scriptless, env),
    );
    await check("the router answers /version without addon and compiler", () => askRouter(scriptless, env));
    await check("a prebuilt addon is taken where there is no compiler", async () => {
      addPrebuild(scriptless, fromSource);
      await run(process.execPath, [join(scriptless, INSTALLED, "scripts/install.mjs")], { cwd: scriptless, env });
      return loadTest(scriptless, process.execPath);
    });
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
  return counts;
}

async function pack(place) {
  const { output } = await run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", place], {
    cwd: root,
  });
  const [{ files }] = JSON.parse(output.slice(output.indexOf("[")));
  const names = new Set(files.map(({ path }) => path));
  const needed = [
    "LICENSE",
    "README.md",
    "CMakeLists.txt",
    "binding.gyp",
    "bin/kvt.js",
    "dist/index.js",
    "dist/index.d.ts",
    "models/tiny.gguf",
  ];
  const missing = needed.filter((name) => !names.has(name));
  if (missing.length > 0) throw new Told(`the tarball lacks ${missing.join(", ")}`);
  const file = readdirSync(place).find((name) => name.endsWith(".tgz"));
  return join(place, file ?? "");
}

async function install(folder, tarball, env, flags = []) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), '{ "private": true, "type": "module" }\n');
  await run("npm", ["install", "--no-audit", "--no-fund", "--foreground-scripts", ...flags, tarball], {
    cwd: folder,
    env,
  });
}

async function loadTest(folder, node) {
  const file = join(folder, "load.js");
  writeFileSync(file, LOAD_TEST);
  const { output } = await run(node, [file], { cwd: folder, timeoutMs: 60_000 });
  return output.trim().split("\n").at(-1);
}

async function currentNode(place) {
  const folder = join(place, "node");
  await run("npm", ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, CURRENT_NODE]);
  const node = join(folder, "node_modules", CURRENT_NODE, "bin/node");
  if (!existsSync(node)) throw new Told(`the package ${CURRENT_NODE} holds no bin/node`);
  return node;
}

function pathOfNodeOnly(place) {
  const folder = join(place, "path");
  mkdirSync(folder);
  symlinkSync(process.execPath, join(folder, "node"));
  return folder;
}

async function installScript(folder, env) {
  const { output } = await run(process.execPath, [join(folder, INSTALLED, "scripts/install.mjs")], {
    cwd: folder,
    env,
  });
  if (!/only the router and the types work/.test(output)) throw new Told(`it said:\n${output}`);
}

/** What prebuildify packs, taken from the build that is there already. */
function addPrebuild(folder, builtFolder) {
  const prebuilds = join(folder, INSTALLED, "prebuilds", `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  copyFileSync(
    join(builtFolder, INSTALLED, "build/Release/kv_transceiver.node"),
    join(prebuilds, "kv-transceiver.node"),
  );
}

async function askRouter(folder, env) {
  const port = await freePort();
  const config = join(folder, "router.yaml");
  writeFileSync(
    config,
    `hostname: 127.0.0.1\nport: ${port}\nbackend: pytorch\ncontext_servers:\n  num_instances: 1\n  urls:\n    - "127.0.0.1:9"\ngeneration_servers:\n  num_instances: 1\n  urls:\n    - "127.0.0.1:9"\n`,
  );
  const kvt = join(folder, INSTALLED, "bin/kvt.js");
  const router = spawn(process.execPath, [kvt, "disaggregated", "-c", config], {
    cwd: folder,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  const ended = new Promise((resolve) => router.on("close", resolve));
  for (const stream of [router.stdout, router.stderr]) stream.on("data", (chunk) => (output += chunk));
  try {
    const until = Date.now() + ROUTER_LIMIT_MS;
    for (;;) {
      if (router.exitCode !== null) throw new Told(`the router ended with code ${router.exitCode}:\n${output}`);
      const answer = await fetch(`http://127.0.0.1:${port}/version`).catch(() => undefined);
      if (answer?.ok) return JSON.stringify(await answer.json());
      if (Date.now() > until)
        throw new Told(`the router did not answer /version within ${ROUTER_LIMIT_MS / 1000} s:\n${output}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  } finally {
    router.kill("SIGKILL");
    await ended;
  }
}

const freePort = () =>
  new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    await prepare();
    const counts = await checkPackage();
    console.log(closingSummary(counts));
    return counts.failed > 0 ? 1 : 0;
  });
}
