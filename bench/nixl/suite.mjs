// Two processes: the path that we take on one machine, our paths through NIXL, and NIXL itself as one uses it who has nothing else.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { bringNixl } from "../../scripts/nixl.mjs";
import { run as runStep } from "../../scripts/steps.mjs";
import { requireCompiler } from "../../scripts/toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const ROOMS = ["layout", "memory", "cuda", "nixl", "paths", "dataplane"];
const PROGRAM = ["main", "nixl_move", "fixed_cost", "staged_tcp"];
const names = new Map([
  ["4096", "4KiB-of-64MiB"],
  ["65536", "64KiB-of-64MiB"],
  ["1048576", "1MiB-of-64MiB"],
]);

export async function run(add, say) {
  const brought = bringNixl("1.5.1");
  if (brought.missing !== undefined) {
    say(`skipped: ${brought.missing}`);
    return;
  }
  const folder = join(root, "build-bench");
  mkdirSync(folder, { recursive: true });
  const program = join(folder, "nixl_bench");
  const sources = ROOMS.flatMap((room) =>
    readdirSync(join(root, "native", room))
      .filter((file) => file.endsWith(".cc"))
      .map((file) => join(root, "native", room, file)),
  );
  const includes = [
    `-I${join(root, "native")}`,
    `-I${join(root, "bench")}`,
    `-isystem${join(root, "native/third_party/xxhash")}`,
  ];
  const images = `-DKVT_CUDA_IMAGES="${join(root, "native/cuda/images")}"`;
  const flags = ["-std=c++20", "-O3", "-DNDEBUG", images, ...includes, "-pthread"];
  const own = PROGRAM.map((name) => join(root, "bench/nixl", `${name}.cc`));
  const args = [...flags, ...own, ...sources, "-ldl", "-o", program];
  await runStep(requireCompiler(), args);
  const env = { ...process.env, KVT_NIXL_LIBRARY: brought.library, UCX_MEM_EVENTS: "n", UCX_DEBUG_SIGNO: "0" };
  const numbersOf = (name, more = {}) =>
    execFileSync(program, [name], { encoding: "utf8", env: { ...env, ...more } })
      .trim()
      .split("\n")
      .map((line) => line.split(" "));
  for (const [piece, shared, direct, plain] of numbersOf("move")) {
    const name = names.get(piece) ?? piece;
    say(
      `${name}: shared_memory ${shared}, nixl_direct ${direct}, NIXL one descriptor a piece ${plain} GB/s, medians of 9`,
    );
    add(name, "move_gb_per_s", Number(shared), "GB/s");
    add(name, "direct_gb_per_s", Number(direct), "GB/s");
    add(name, "nixl_gb_per_s", Number(plain), "GB/s");
    add(name, "ratio_nixl", Number(shared) / Number(plain), "");
  }
  const [[job, alone]] = numbersOf("fixed");
  say(`fixed-cost: a job of 4 KiB ${job} µs from submit to ring, NIXL alone ${alone} µs, medians of 1000`);
  add("fixed-cost", "job_us", Number(job), "µs");
  add("fixed-cost", "nixl_us", Number(alone), "µs");
  add("fixed-cost", "delta_us", Number(job) - Number(alone), "µs");
  const [[staged, direct]] = numbersOf("staged", { UCX_TLS: "tcp" });
  say(`staged-tcp-4KiB: nixl_staged ${staged}, nixl_direct ${direct} GB/s over tcp, medians of 9`);
  add("staged-tcp-4KiB", "staged_gb_per_s", Number(staged), "GB/s");
  add("staged-tcp-4KiB", "direct_gb_per_s", Number(direct), "GB/s");
  add("staged-tcp-4KiB", "ratio_direct", Number(staged) / Number(direct), "");
}
