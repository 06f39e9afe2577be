// npm start: from a fresh clone to a running deployment. Arguments go to `kvt demo`.
import { spawn } from "node:child_process";
import { join } from "node:path";
import { prepare, root } from "./prepare.mjs";
import { main } from "./steps.mjs";

await main(async () => {
  await prepare();
  const demo = spawn(process.execPath, [join(root, "bin/kvt.js"), "demo", ...process.argv.slice(2)], {
    cwd: root,
    stdio: "inherit",
  });
  // Ctrl-C reaches the demo too (same process group): it ends its processes, then this one ends with its code.
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => demo.kill(signal));
  return new Promise((resolve) => demo.on("close", (code) => resolve(code ?? 1)));
});
