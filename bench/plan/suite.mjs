// How many runs a second plans give, on one thread and without copying a byte: native/layout alone.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { run as runStep } from "../../scripts/steps.mjs";
import { requireCompiler } from "../../scripts/toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));

export async function run(add, say) {
  const folder = join(root, "build-bench");
  mkdirSync(folder, { recursive: true });
  const program = join(folder, "plan_runs");
  const layout = join(root, "native/layout");
  const sources = readdirSync(layout)
    .filter((file) => file.endsWith(".cc") && file !== "digest.cc")
    .map((file) => join(layout, file));
  const flags = ["-std=c++20", "-O3", "-DNDEBUG", `-I${join(root, "native")}`];
  await runStep(requireCompiler(), [...flags, join(root, "bench/plan/plan_runs.cc"), ...sources, "-o", program]);
  for (const line of execFileSync(program, { encoding: "utf8" }).trim().split("\n")) {
    const [name, runs, blocks, nanos] = line.split(" ");
    say(`${name}: ${runs} runs of ${blocks} target blocks in ${nanos} ns, median of 15`);
    add(name, "runs_per_s", (Number(runs) / Number(nanos)) * 1e9, "1/s");
    add(name, "blocks_per_s", (Number(blocks) / Number(nanos)) * 1e9, "1/s");
  }
}
