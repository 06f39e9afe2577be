import { renderEffective } from "../config/chosen.ts";
import { readSource } from "../config/file_rules.ts";
import { type Problem, Problems, renderProblem } from "../config/problems.ts";
import { resolveRouter } from "../config/router_settings.ts";
import type { EffectiveValue } from "../config/settings.ts";
import { resolveWorker } from "../config/worker_settings.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";

const flags = {
  kind: {
    kind: "choice",
    choices: { worker: "worker", router: "router" },
    help: "which file it is (default: a router's when it has context_servers or generation_servers)",
  },
  kvt_config: { kind: "string", value: "FILE", help: "our own options of a worker, checked along with it" },
  json: { kind: "boolean", help: "print JSON" },
} as const satisfies FlagTable;

const routerKeys = ["context_servers", "generation_servers", "hostname", "conditional_disagg_config", "schedule_style"];

function kindOf(file: string): "worker" | "router" {
  const source = readSource(file, new Problems());
  return routerKeys.some((key) => source?.has([key])) ? "router" : "worker";
}

interface Read {
  readonly kind: "worker" | "router";
  readonly effective: readonly EffectiveValue[];
  readonly problems: readonly Problem[];
}

function read(file: string, kind: "worker" | "router", kvtConfigFile: string | undefined, terminal: Terminal): Read {
  const { env } = terminal;
  const { effective, problems } =
    kind === "router"
      ? resolveRouter({ configFile: file, env })
      : resolveWorker({ model: "MODEL", configFile: file, env, ...(kvtConfigFile ? { kvtConfigFile } : {}) });
  return { kind, effective, problems: [...problems.fatal, ...problems.mild] };
}

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? "" : "s"}`;

function writeJson(action: string, file: string, result: Read, terminal: Terminal): void {
  const { kind, effective, problems } = result;
  const value = action === "print" ? { file, kind, effective, problems } : { file, kind, problems };
  terminal.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("config", flags, argv);
  const [action, file, extra] = positionals;
  if ((action !== "print" && action !== "check") || file === undefined) {
    throw usage("config", `write kvt config print FILE or kvt config check FILE`);
  }
  if (extra !== undefined) throw usage("config", `${extra} is not expected here: one file at a time`);
  const result = read(file, given.kind?.value ?? kindOf(file), given.kvt_config?.value, terminal);
  const fatal = result.problems.filter(({ kind }) => kind === "error" || kind === "not_built");
  if (given.json?.value) {
    writeJson(action, file, result, terminal);
  } else {
    for (const problem of result.problems) terminal.stderr.write(`${renderProblem(problem)}\n`);
    if (fatal.length > 0) {
      terminal.stderr.write(`${file}: ${count(fatal.length, "problem")}; a ${result.kind} does not start with it\n`);
    } else if (action === "print") {
      terminal.stdout.write(`${renderEffective(result.effective).join("\n")}\n`);
    } else {
      const warnings = result.problems.filter(({ kind }) => kind === "warning").length;
      terminal.stdout.write(`${file}: a ${result.kind} starts with it (${count(warnings, "warning")})\n`);
    }
  }
  return fatal.length > 0 ? ExitCode.usage : ExitCode.ok;
}

export const config: Command = {
  name: "config",
  usage: "config print|check FILE [flags]",
  about:
    "Reads a worker's or router's YAML file as kvt serve and kvt disaggregated do, without starting anything. Check reports all " +
    "problems at once; print shows every value with its origin: default, file and line, or environment.",
  examples: [
    "kvt config check examples/basic/ctx_config.yaml",
    "kvt config print examples/basic/disagg_config.yaml",
    "KVT_LOG_LEVEL=debug kvt config print examples/basic/gen_config.yaml --json",
  ],
  flags,
  run,
};
