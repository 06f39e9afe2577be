// The built router as its own process. Arguments: port of the context worker (empty: none), port of the generation worker, schedule style.
import { createLogger } from "../../dist/observability/log.js";
import { startRouter } from "../../dist/router/server.js";

const [context, generation, scheduleStyle = "context_first"] = process.argv.slice(2);
const group = (port) => ({
  servers: port === "" ? [] : [{ url: `127.0.0.1:${port}`, origin: `http://127.0.0.1:${port}` }],
  policy: "round_robin",
});
const router = await startRouter(
  {
    host: "127.0.0.1",
    port: 0,
    logLevel: "warn",
    model: null,
    strictModel: false,
    context: group(context),
    generation: group(generation),
    scheduleStyle,
    maxRetries: 1,
    nodeId: 1,
    allowRequestChatTemplate: false,
    serverStartTimeoutMs: 30_000,
    requestTimeoutMs: 60_000,
    metricsLogIntervalMs: 0,
    maxBodyBytes: 64 << 20,
    authToken: null,
  },
  { log: createLogger({ name: "router", level: "warn" }) },
);
await router.ready;
process.send({ port: router.port });
