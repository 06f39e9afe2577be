// What `npm start`, `npm test` and CI do first: packages, the native addon, dist/. Plain Node, because nothing is installed yet.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { run, step, Told } from "./steps.mjs";
import { requireCompiler } from "./toolchain.mjs";

export const root = fileURLToPath(new URL("..", import.meta.url));
const NODE_MIN = [20, 19];

export function requireNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major > NODE_MIN[0] || (major === NODE_MIN[0] && minor >= NODE_MIN[1])) return;
  throw new Told(
    `Node.js ${NODE_MIN.join(".")} or newer is needed, this is ${process.version}: install a current one from https://nodejs.org or with your package manager.`,
  );
}

/** Checks tools, then installs and builds what is missing or older than its sources. */
export async function prepare() {
  // Everything is built in a bundle (scripts/bundle.mjs), and nothing could be built.
  if (process.env.KVT_BUNDLE) return;
  requireNode();
  requireCompiler();
  await installPackages();
  const { buildNative } = await import("./native.mjs");
  await buildNative();
  await step("TypeScript", () =>
    run(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", "tsconfig.build.json"], { cwd: root }),
  );
}

/** `npm ci` unless node_modules already is what the lock file says. */
async function installPackages() {
  const lock = readFileSync(join(root, "package-lock.json"), "utf8");
  const stamp = join(root, "node_modules/.kvt-installed");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) return;
  if (!existsSync(stamp) && holdsEveryPackage(lock)) {
    writeFileSync(stamp, lock);
    return;
  }
  await step("npm packages", () =>
    // Without scripts: our own install script would build the addon unseen, and no dependency needs one.
    run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], { cwd: root }),
  );
  mkdirSync(join(root, "node_modules"), { recursive: true });
  writeFileSync(stamp, lock);
}

/** Whether an install done by hand (plain `npm install`) already has each package of the lock file in its version. */
function holdsEveryPackage(lock) {
  for (const [folder, entry] of Object.entries(JSON.parse(lock).packages)) {
    if (folder === "" || entry.optional === true) continue;
    const file = join(root, folder, "package.json");
    if (!existsSync(file) || JSON.parse(readFileSync(file, "utf8")).version !== entry.version) return false;
  }
  return true;
}
