import { resolveRouter } from "../config/router_settings.ts";
import { startRouter } from "../router/server.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import type { Command, Terminal } from "./command.ts";
import { logLevelChoices } from "./serve_flags.ts";
import { logConfiguration, serverLog, serveUntilSignal } from "./serving.ts";

const flags = {
  config_file: { kind: "string", short: "c", aliases: ["config"], value: "FILE", help: "the router's YAML (required)" },
  metadata_server_config_file: {
    kind: "string",
    short: "m",
    value: "FILE",
    help: "metadata server (not built yet)",
  },
  server_start_timeout: {
    kind: "number",
    short: "t",
    min: 0,
    value: "SECONDS",
    help: "how long the workers may take to be ready (default 180)",
  },
  request_timeout: {
    kind: "number",
    short: "r",
    min: 0.001,
    value: "SECONDS",
    help: "limit to the first byte of an answer, and for silence after it (default 180)",
  },
  log_level: { kind: "choice", short: "l", choices: logLevelChoices, value: "LEVEL", help: "default info" },
  metrics_log_interval: { kind: "number", min: 0, value: "SECONDS", help: "log metrics so often (default 0: never)" },
  max_body_mb: { kind: "integer", min: 1, max: 1024, help: "largest request body in MiB (default 64)" },
  strict_model: { kind: "boolean", help: "answer 404 when a request names another model" },
} as const satisfies FlagTable;

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("disaggregated", flags, argv);
  if (positionals[0] !== undefined) throw usage("disaggregated", `${positionals[0]} is not expected here`);
  if (!given.config_file) throw usage("disaggregated", "--config_file (-c) must be given: -c disagg_config.yaml");
  const resolved = resolveRouter({ configFile: given.config_file.value, flags: given, env: terminal.env });
  resolved.problems.throwIfFatal();
  const log = serverLog("router", resolved.settings.logLevel);
  logConfiguration(log, resolved);
  return serveUntilSignal(log, () => startRouter(resolved.settings));
}

export const disaggregated: Command = {
  name: "disaggregated",
  usage: "disaggregated -c FILE [flags]",
  about:
    "Starts the router: an OpenAI-compatible HTTP endpoint that sends each prompt to a context worker and lets a generation " +
    "worker, which fetches the KV cache from it, produce the answer. The YAML file lists the workers.",
  examples: [
    "kvt disaggregated -c examples/basic/disagg_config.yaml",
    "kvt disaggregated -c disagg_config.yaml -t 60 -r 30 -l debug",
  ],
  flags,
  run,
};
