// npm's install script: a prebuilt addon that loads is used, else the addon is built, else the router must do without.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { buildNative } from "./native.mjs";
import { main, Told } from "./steps.mjs";
import { requireCompiler } from "./toolchain.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));

await main(async () => {
  if (process.env.npm_config_build_from_source !== "true" && (await prebuiltLoads())) return;
  try {
    requireCompiler();
  } catch (error) {
    if (!(error instanceof Told)) throw error;
    console.log(
      `kv-transceiver is installed without its native addon, so only the router and the types work. ${error.message}`,
    );
    return;
  }
  await buildNative();
});

async function prebuiltLoads() {
  try {
    createRequire(import.meta.url)("node-gyp-build").resolve(root);
  } catch {
    return false;
  }
  const loader = join(root, "dist/native/loader.js");
  if (!existsSync(loader)) return false; // a clone: the build decides what is up to date
  try {
    (await import(pathToFileURL(loader).href)).loadNative();
    return true;
  } catch (error) {
    console.log(`The prebuilt addon doesn't load here (${error.message}); building it.`);
    return false;
  }
}
