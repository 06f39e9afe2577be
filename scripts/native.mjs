// Builds the addon with cmake-js into build/ (Release), or what the arguments say.
import { spawnSync } from "node:child_process";

const result = spawnSync(
  process.execPath,
  ["node_modules/cmake-js/bin/cmake-js", "compile", ...process.argv.slice(2)],
  { stdio: "inherit" },
);
process.exit(result.status ?? 1);
