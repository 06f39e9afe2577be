// 64 MiB in scattered pieces between two processes: the path that we take on one machine, our path through NIXL, and NIXL itself.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { bringNixl } from "../../scripts/nixl.mjs";
import { run as runStep } from "../../scripts/steps.mjs";
import { requireCompiler } from "../../scripts/toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const ROOMS = ["layout", "memory", "cuda", "nixl", "paths"];
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
  const program = join(folder, "nixl_move");
  const sources = ROOMS.flatMap((room) =>
    readdirSync(join(root, "native", room))
      .filter((file) => file.endsWith(".cc"))
      .map((file) => join(root, "native", room, file)),
  );
  const includes = [`-I${join(root, "native")}`, `-isystem${join(root, "native/third_party/xxhash")}`];
  const images = `-DKVT_CUDA_IMAGES="${join(root, "native/cuda/images")}"`;
  const flags = ["-std=c++20", "-O3", "-DNDEBUG", ...includes, images, "-pthread"];
  const args = [...flags, join(root, "bench/nixl/nixl_move.cc"), ...sources, "-ldl", "-o", program];
  await runStep(requireCompiler(), args);
  const env = { ...process.env, KVT_NIXL_LIBRARY: brought.library, UCX_MEM_EVENTS: "n", UCX_DEBUG_SIGNO: "0" };
  for (const line of execFileSync(program, { encoding: "utf8", env }).trim().split("\n")) {
    const [piece, shared, direct, plain] = line.split(" ");
    const name = names.get(piece) ?? piece;
    say(
      `${name}: shared_memory ${shared}, nixl_direct ${direct}, NIXL one descriptor a piece ${plain} GB/s, medians of 9`,
    );
    add(name, "move_gb_per_s", Number(shared), "GB/s");
    add(name, "direct_gb_per_s", Number(direct), "GB/s");
    add(name, "nixl_gb_per_s", Number(plain), "GB/s");
    add(name, "ratio_nixl", Number(shared) / Number(plain), "");
  }
}
