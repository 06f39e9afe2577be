// Starts the two processes, carries the descriptor from one to the other, and compares what they say.
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const socketDir = mkdtempSync(join(tmpdir(), "kvt-example-"));
const start = (role) =>
  fork(new URL("./worker.mjs", import.meta.url), [role, socketDir], { serialization: "advanced" });
const context = start("context");
const generation = start("generation");
try {
  const [offered] = await once(context, "message");
  generation.send(offered.descriptor);
  const [received] = await once(generation, "message");
  console.log(`context    pid ${context.pid}: SHA-256 of its sequence  ${offered.sha256}`);
  console.log(`generation pid ${generation.pid}: SHA-256 of what it pulled ${received.sha256}`);
  for (const { bytes, us } of received.moves) {
    console.log(
      `moved ${bytes / 2 ** 20} MiB in 4 KiB blocks: ${Math.round(us)} µs, ${(bytes / us / 1000).toFixed(2)} GB/s`,
    );
  }
  if (offered.sha256 !== received.sha256) throw new Error("the bytes differ");
  console.log("equal");
} finally {
  context.kill();
  generation.kill();
  rmSync(socketDir, { recursive: true, force: true });
}
