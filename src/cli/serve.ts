import { existsSync, statSync } from "node:fs";
import { resolveWorker } from "../config/worker_settings.ts";
import { startWorker } from "../worker/server.ts";
import { parseArguments, usage } from "./arguments.ts";
import type { Command, Terminal } from "./command.ts";
import { acceptedServeFlags, serveFlags } from "./serve_flags.ts";
import { logConfiguration, serverLog, serveUntilSignal } from "./serving.ts";

function checkModel(model: string): void {
  if (existsSync(model) && statSync(model).isFile()) return;
  const hint =
    /^[\w.-]+\/[\w.-]+$/.test(model) && !existsSync(model) ? " (names of a model hub are not looked up)" : "";
  throw usage("serve", `MODEL must be a GGUF file; there is no file ${model}${hint}`);
}

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags, positionals } = parseArguments("serve", serveFlags, argv);
  const [model, extra] = positionals;
  if (model === undefined) throw usage("serve", "MODEL is missing: kvt serve models/tiny.gguf");
  if (extra !== undefined) throw usage("serve", `${extra} is not expected here: one MODEL a worker`);
  const resolved = resolveWorker({
    model,
    flags,
    env: terminal.env,
    ...(flags.config ? { configFile: flags.config.value } : {}),
    ...(flags.kvt_config ? { kvtConfigFile: flags.kvt_config.value } : {}),
  });
  const without = acceptedServeFlags.flatMap((name) => flags[name]?.origin ?? []);
  if (without.length > 0) resolved.problems.add("warning", "", `accepted, without effect here: ${without.join(", ")}`);
  resolved.problems.throwIfFatal();
  checkModel(model);
  const log = serverLog("worker", resolved.settings.logLevel);
  logConfiguration(log, resolved);
  return serveUntilSignal(log, () => startWorker(resolved.settings));
}

export const serve: Command = {
  name: "serve",
  usage: "serve MODEL [flags]",
  about:
    "Starts one worker with an OpenAI-compatible HTTP endpoint. MODEL is a GGUF file of a Llama-like model. With " +
    "cache_transceiver_config in its YAML it can hand its KV cache to another worker, or fetch one.",
  examples: [
    "kvt serve models/tiny.gguf",
    "kvt serve models/tiny.gguf --port 8001 --config examples/basic/ctx_config.yaml",
    "kvt models/tiny.gguf --host 0.0.0.0 --port 8003 --config examples/basic/gen_config.yaml &> log_gen_0 &",
  ],
  flags: serveFlags,
  run,
};
