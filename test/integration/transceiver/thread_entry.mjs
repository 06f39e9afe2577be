// A worker thread with a transceiver of its own that offers 150 tokens, and throws when it is told to.
import { parentPort, workerData } from "node:worker_threads";
import { KvTransceiver, requestId } from "../../../dist/index.js";

const kv = await KvTransceiver.open(workerData);
const blocks = kv.pool.allocate(5);
const sending = kv.send({ requestId: requestId(1), tokens: 150, blocks });
sending.done.catch(() => {});
parentPort.on("message", () => {
  throw new Error("told to throw");
});
parentPort.postMessage(sending.state);
