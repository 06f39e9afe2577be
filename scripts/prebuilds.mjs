// Packs the addon for this platform into prebuilds/, for a tarball that installs without a compiler.
import { fileURLToPath } from "node:url";
import { main, run, step } from "./steps.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));

await main(() =>
  step("prebuilds", async () => {
    const env = { ...process.env, PREBUILD_NODE_GYP: `${root}scripts/native.mjs` };
    await run(process.execPath, ["node_modules/prebuildify/bin.js", "--napi", "--strip", "--tag-libc"], {
      cwd: root,
      env,
    });
    return `prebuilds/${process.platform}-${process.arch}`;
  }),
);
