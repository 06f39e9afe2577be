// Pools on a GPU: scattered pieces from another process's pool, against the copy of as many contiguous bytes by the driver.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { run as runStep } from "../../scripts/steps.mjs";
import { findCompiler } from "../../scripts/toolchain.mjs";
import { runCalls } from "./calls.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const ROOMS = ["layout", "memory", "cuda"];
const PATHS = ["cuda_descriptor.cc", "cuda_peer.cc"];
const sizeName = (bytes) => (bytes < 2 ** 20 ? `${bytes / 1024}KiB` : `${bytes / 2 ** 20}MiB`);

/** Asked in a process of its own: what it opens on a GPU goes with it. */
function probe() {
  const ask = new URL("./probe.mjs", import.meta.url).pathname;
  return JSON.parse(execFileSync(process.execPath, [ask], { encoding: "utf8" }));
}

async function program() {
  const file = join(root, "build-bench/gpu_move");
  // A bundle brings it, for hosts without a compiler.
  if (findCompiler() === undefined && existsSync(file)) return file;
  mkdirSync(join(root, "build-bench"), { recursive: true });
  const room = (name) =>
    readdirSync(join(root, "native", name))
      .filter((one) => one.endsWith(".cc"))
      .map((one) => join(root, "native", name, one));
  const sources = [...ROOMS.flatMap(room), ...PATHS.map((one) => join(root, "native/paths", one))];
  const flags = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    `-I${join(root, "native")}`,
    `-isystem${join(root, "native/third_party/xxhash")}`,
    `-DKVT_CUDA_IMAGES="${join(root, "native/cuda/images")}"`,
  ];
  await runStep(findCompiler(), [
    ...flags,
    join(root, "bench/gpu/gpu_move.cc"),
    ...sources,
    "-pthread",
    "-ldl",
    "-o",
    file,
  ]);
  return file;
}

export async function run(add, say) {
  const { why, version, devices } = probe();
  const [first, second] = devices.filter(({ kernels }) => kernels !== null);
  if (first === undefined) {
    say(`skipped: ${why ?? devices[0]?.why ?? "CUDA sees no GPU"}`);
    return;
  }
  // Two GPUs when there are two: what is measured then is the link between them.
  const target = second ?? first;
  say(
    `${first.name} → ${target === first ? "the same GPU" : target.name}, CUDA ${version}, kernels as ${first.kernels}; two processes`,
  );
  for (const line of execFileSync(await program(), [String(first.device), String(target.device), "11"], {
    encoding: "utf8",
  })
    .trim()
    .split("\n")) {
    const [piece, total, multiprocessors, ours, copy, call] = line.split(" ").map(Number);
    const name = `peer-${sizeName(piece)}-of-${sizeName(total)}`;
    say(
      `${name}, ${multiprocessors} multiprocessors: ${ours} µs of the GPU, driver's copy ${copy} µs, post to end ${call} µs; medians of 11`,
    );
    if (multiprocessors !== 64) continue;
    add(name, "move_gb_per_s", total / ours / 1000, "GB/s");
    add(name, "ratio_copy_engine", copy / ours, "");
  }
  for (const verify of ["off", "sampled", "full"]) {
    const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
    try {
      await runCalls(add, say, socketDir, [`cuda:${first.device}`, `cuda:${target.device}`], verify);
    } finally {
      rmSync(socketDir, { recursive: true, force: true });
    }
  }
}
