// One worker as a process of its own: node worker_entry.mjs '{"model": ..., overrides of WorkerSettings}'. Prints one line of JSON.
import process from "node:process";

const root = new URL("../../../dist/", import.meta.url);
const { defaultWorkerSettings } = await import(new URL("config/worker_settings.js", root).href);
const { startWorker } = await import(new URL("worker/server.js", root).href);

process.on("unhandledRejection", (error) => {
  console.error("UNHANDLED REJECTION", error);
  process.exit(70);
});
const { hooks, ...overrides } = JSON.parse(process.argv[2] ?? "{}");
const server = await startWorker({ ...defaultWorkerSettings(overrides.model), ...overrides }, hooks);
console.log(JSON.stringify({ url: server.url }));
process.on("SIGTERM", async () => {
  await server.close({ drainMs: 5_000 });
  process.exit(0);
});
