#!/usr/bin/env node
// Builds native/cuda/kernels into native/cuda/images with nvcc: node scripts/kernels.mjs [--check]
//   --check  builds nothing, and fails when the images are not those of the sources
// The images are kept in the repository, so that the addon is built without CUDA (docs/decisions: kernels are built ahead).
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { main, run, step, Told } from "./steps.mjs";
import { onPath } from "./toolchain.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const images = join(root, "native/cuda/images");
const record = join(images, "built.json");
/** native/cuda/images.cc names the same ones. */
const kernels = ["digest", "gather"];
const headers = ["digest_input.h", "gather_segment.h", "on_device.h", "xxh3.h"];
const sources = [
  ...headers.map((name) => `native/cuda/${name}`),
  ...kernels.map((name) => `native/cuda/kernels/${name}.cu`),
];

/** One machine code for each generation of GPUs; native/cuda/images.cc names the same ones. */
export const architectures = ["80", "86", "89", "90", "100", "120"];
/** For all others from Turing on. Version 8.0 of the language is what the drivers of CUDA 12.0 (525) can compile. */
const PTX_TARGET = "75";
const PTX_VERSION = "8.0";
const flags = ["-std=c++17", "-O3", "-I", "native"];

const hashOf = (file) => createHash("sha256").update(readFileSync(file)).digest("hex");
const hashesOf = (folder, names) => Object.fromEntries(names.map((name) => [name, hashOf(join(folder, name))]));

/** What nvcc writes for its newest driver, as an older one reads it. The pragmas only tell which bytes of a vector are used. */
const asOldPtx = (text) =>
  text.replace(/^\.version .*$/m, `.version ${PTX_VERSION}`).replace(/^\t\.pragma "used_bytes_mask .*\n/gm, "");

async function build(folder, name) {
  const kernel = `native/cuda/kernels/${name}.cu`;
  for (const arch of architectures) {
    const cubin = join(folder, `${name}.sm_${arch}.cubin`);
    await run("nvcc", [...flags, `-arch=sm_${arch}`, "-cubin", "-o", cubin, kernel], { cwd: root });
  }
  const ptx = join(folder, `${name}.ptx`);
  await run("nvcc", [...flags, `-arch=compute_${PTX_TARGET}`, "-ptx", "-o", ptx, kernel], { cwd: root });
  writeFileSync(ptx, asOldPtx(readFileSync(ptx, "utf8")));
  const place = mkdtempSync(join(tmpdir(), "kvt-ptxas-"));
  try {
    for (const arch of [PTX_TARGET, ...architectures])
      await run("ptxas", [`-arch=sm_${arch}`, "-o", join(place, "assembled"), ptx], { cwd: root });
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
}

/** Sentences, none when the images are those of the sources. */
export function staleImages() {
  const { sources: built, images: made } = JSON.parse(readFileSync(record, "utf8"));
  const differing = (folder, hashes) =>
    Object.entries(hashesOf(folder, Object.keys(hashes))).filter(([name, hash]) => hashes[name] !== hash);
  return [...differing(root, built), ...differing(images, made)].map(
    ([name]) => `${name} is not what native/cuda/images/built.json was made with: run \`npm run kernels\``,
  );
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  await main(async () => {
    if (process.argv.includes("--check")) {
      const stale = staleImages();
      if (stale.length > 0) throw new Told(stale.join("\n"));
      return;
    }
    if (!onPath("nvcc")) throw new Told("nvcc was not found; CUDA 13.0 is needed to build the kernels anew.");
    await step("kernels", async () => {
      for (const name of kernels) await build(images, name);
      const { output } = await run("nvcc", ["--version"]);
      const names = readdirSync(images).filter((name) => kernels.some((kernel) => name.startsWith(`${kernel}.`)));
      const made = {
        nvcc: output.match(/V(\d+\.\d+\.\d+)/)?.[1] ?? "unknown",
        sources: hashesOf(root, sources),
        images: hashesOf(images, names.sort()),
      };
      writeFileSync(record, `${JSON.stringify(made, null, 2)}\n`);
      return `${names.length} images`;
    });
  });
}
