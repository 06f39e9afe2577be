import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { run } from "../../scripts/steps.mjs";
import { requireCompiler } from "../../scripts/toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Builds and starts memcpy_baseline.cc; `copy(bytes)` answers the microseconds of one copy. */
export async function startMemcpy(bufferBytes, threads) {
  const folder = join(root, "build-bench");
  mkdirSync(folder, { recursive: true });
  const program = join(folder, "memcpy_baseline");
  const source = join(root, "bench/transfer/memcpy_baseline.cc");
  await run(requireCompiler(), ["-std=c++20", "-O2", "-pthread", source, "-o", program]);
  const child = spawn(program, [String(bufferBytes), String(threads)], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    async copy(bytes) {
      child.stdin.write(`${bytes}\n`);
      return Number((await lines.next()).value) / 1000;
    },
    close: () => child.kill("SIGKILL"),
  };
}
