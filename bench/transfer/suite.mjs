import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCalls } from "./calls.mjs";
import { runPieces } from "./pieces.mjs";
import { runVerify } from "./verify.mjs";

/** Figures of design.md section 11: bytes moved between two processes of this host. */
export async function run(add, say) {
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
  try {
    await runCalls(add, say, socketDir);
    await runPieces(add, say, socketDir);
    await runVerify(add, say, socketDir);
  } finally {
    rmSync(socketDir, { recursive: true, force: true });
  }
}
