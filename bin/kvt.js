#!/usr/bin/env node
import { existsSync } from "node:fs";

const entry = new URL("../dist/cli/main.js", import.meta.url);

// `kvt ... | head` closes our output early: that is no error of ours.
process.stdout.on("error", (error) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

if (!existsSync(entry)) {
  console.error("kvt: this copy is not built yet; run: npm install && npm run build");
  process.exit(1);
}
const { main } = await import(entry.href);
process.exitCode = await main(process.argv.slice(2), process);
// A handle that someone forgot must not keep a finished command alive. Said, so that a test sees it: this is a defect of ours.
setTimeout(() => {
  const held = process.getActiveResourcesInfo().filter((name) => name !== "Timeout");
  console.error(`kvt: ended 2 s after its work was over; still open: ${held.join(", ")}`);
  process.exit();
}, 2_000).unref();
