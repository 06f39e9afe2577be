// One worker as its own process, without prefix reuse: every prompt is computed. It keeps records of its requests. Arguments: model file, directory of the unix sockets.
import { defaultWorkerSettings } from "../../dist/config/worker_settings.js";
import { startWorker } from "../../dist/worker/server.js";

const [model, socketDir] = process.argv.slice(2);
const defaults = defaultWorkerSettings(model);
const server = await startWorker({
  ...defaults,
  host: "127.0.0.1",
  port: 0,
  logLevel: "warn",
  socketDir,
  enableChunkedPrefill: true,
  perfMetricsMaxRequests: 1000,
  kvCache: { ...defaults.kvCache, enableBlockReuse: false, maxTokens: 8192 },
  transceiver: {
    backend: "DEFAULT",
    maxTokensInBuffer: null,
    kvTransferTimeoutMs: 60_000,
    kvTransferSenderFutureTimeoutMs: 1000,
    transceiverRuntime: null,
  },
});
process.send({ port: server.port });
