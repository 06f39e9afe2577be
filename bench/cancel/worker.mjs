// One worker of suite `cancel`, a process of its own: node worker.mjs '{settings}'. Over IPC it is told which step it is asked about, says
// when a request has come to it, holds what would lead out of it until the request's pull is over, and says when all its blocks are free.
import process from "node:process";
import { createLogger } from "../../dist/observability/log.js";
import { KvTransceiver } from "../../dist/transceiver/transceiver.js";
import { startWorker } from "../../dist/worker/server.js";
import { HeldPlane } from "../../test/integration/transceiver/held_plane.mjs";

const HELD = ["READ", "VERIFY", "RETRY"];
const plane = new HeldPlane();
let awaited = null;

const reached = (step) => {
  if (step !== awaited) return;
  awaited = null;
  process.send({ reached: step });
};

const observer = ({ role, to }) => {
  if (role !== "receiver") return;
  reached(to);
  // Behind the effects of the step at hand.
  if (to === "DRAIN") queueMicrotask(() => plane.letGo());
};

const { open } = KvTransceiver;
KvTransceiver.open = async (options, hooks) => {
  const kv = await open.call(KvTransceiver, options, hooks);
  kv.pool.onFreed(() => {
    if (kv.pool.free === kv.pool.total) process.send({ free: true });
  });
  return kv;
};

const worker = await startWorker(JSON.parse(process.argv[2]), {
  log: createLogger({ name: "bench", level: "fatal" }),
  onChange: ({ to }) => reached(to),
  onStep: () => reached("step"),
  onFreed: (phase) => process.send({ freed: phase }),
  transceiver: { observer, plane: plane.around },
});
process.on("message", async ({ step, close }) => {
  if (close) {
    await worker.close({ drainMs: 0 });
    process.exit(0);
  }
  awaited = step;
  if (HELD.includes(step)) plane.hold(step);
  process.send({ awaits: step });
});
process.send({ url: worker.url });
