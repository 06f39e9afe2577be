import { existsSync } from "node:fs";
import { nearest } from "../config/nearest.ts";
import { isKvError, KvError } from "../errors.ts";
import { packageVersion } from "../version.ts";
import { type Command, ExitCode, helpText, type Terminal } from "./command.ts";

interface CommandEntry {
  /** One line for the list of commands. */
  readonly summary: string;
  // On demand: the router starts where no addon is built, and --help is quick.
  readonly load: () => Promise<Command>;
}

const commands: Readonly<Record<string, CommandEntry>> = {
  serve: {
    summary: "start a worker: context, generation, or both, as each request asks",
    load: async () => (await import("./serve.ts")).serve,
  },
  disaggregated: {
    summary: "start the router in front of context and generation workers",
    load: async () => (await import("./disaggregated.ts")).disaggregated,
  },
  demo: {
    summary: "see it work: a question whose answer sits only in the moved KV cache",
    load: async () => (await import("./demo.ts")).demo,
  },
  client: {
    summary: "send a file of prompts to a router and write the answers to a file",
    load: async () => (await import("./client.ts")).client,
  },
  doctor: {
    summary: "look at this machine: how KV can move here, and what is missing",
    load: async () => (await import("./doctor.ts")).doctor,
  },
  nixl: {
    summary: "bring NIXL, which moves KV to other hosts",
    load: async () => (await import("./nixl.ts")).nixl,
  },
  config: {
    summary: "check a YAML file, or print every value that takes effect and its origin",
    load: async () => (await import("./config.ts")).config,
  },
};

// Of trtllm-serve or of later versions: each is answered with a sentence instead of "unknown command" (S98, S106).
const notProvided: Readonly<Record<string, string>> = {
  disaggregated_mpi_worker: "workers in one MPI world are not built yet; start each with kvt serve",
  drain: "is not built yet; SIGTERM drains a worker or router",
  grpc: "a gRPC front is not provided; use HTTP with kvt serve",
  launch: "starting the ranks of a SLURM or MPI job is not built yet; start each process itself",
  mm_embedding_serve: "multimodal encoders are not provided",
};

const INTRODUCTION = `kvt: disaggregated LLM serving, where prefill and decode run in different processes and the KV cache moves
between them.

Usage: kvt COMMAND [flags]
       kvt MODEL [flags]      the same as kvt serve MODEL

Commands:`;

function introduction(): string {
  const lines = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(16)}${summary}`);
  return `${INTRODUCTION}\n${lines.join("\n")}\n\nkvt COMMAND --help explains one. kvt --version prints the version.\n`;
}

const exitCodes: Readonly<Record<string, number>> = {
  BIND_FAILED: ExitCode.bindFailure,
  CONFIG_INVALID: ExitCode.usage,
  START_TIMEOUT: ExitCode.startTimeout,
  USAGE: ExitCode.usage,
};

/** What a failed command says: one sentence and its remedy; a stack only for defects of our own. */
export function failureText(thrown: unknown): string {
  if (!isKvError(thrown))
    return `kvt: ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}\n`;
  return `kvt: ${thrown.message}\n     ${thrown.remedy}\n`;
}

/** The command that a line starts with, and its own arguments. A first word that is no command is a MODEL (S98). */
function commandOf(argv: readonly string[]): { readonly entry: CommandEntry; readonly rest: readonly string[] } {
  const [first = "", ...rest] = argv;
  const entry = Object.hasOwn(commands, first) ? commands[first] : undefined;
  if (entry) return { entry, rest };
  const reason = Object.hasOwn(notProvided, first) ? notProvided[first] : undefined;
  if (reason)
    throw new KvError("USAGE", { what: `kvt ${first}: ${reason}`, remedy: "see kvt --help for what there is" });
  const near = existsSync(first) ? undefined : nearest(first, [...Object.keys(commands), ...Object.keys(notProvided)]);
  if (near) {
    throw new KvError("USAGE", {
      what: `there is no command and no model ${first}`,
      remedy: `did you mean kvt ${near}?`,
    });
  }
  return { entry: commands.serve as CommandEntry, rest: argv };
}

async function dispatch(argv: readonly string[], terminal: Terminal): Promise<number> {
  const [first, second] = argv;
  if (first === undefined || first === "--help" || first === "-h" || (first === "help" && second === undefined)) {
    (first === undefined ? terminal.stderr : terminal.stdout).write(introduction());
    return first === undefined ? ExitCode.usage : ExitCode.ok;
  }
  if (first === "--version" || first === "-V") {
    terminal.stdout.write(`${packageVersion()}\n`);
    return ExitCode.ok;
  }
  if (first === "help") return dispatch([second ?? "", "--help"], terminal);
  const { entry, rest } = commandOf(argv);
  const command = await entry.load();
  if (rest.includes("--help") || rest.includes("-h")) {
    terminal.stdout.write(helpText(command));
    return ExitCode.ok;
  }
  return command.run(rest, terminal);
}

/** Runs one command line. Never throws: every failure is written to standard error and has an exit code (S109). */
export async function main(argv: readonly string[], terminal: Terminal): Promise<number> {
  try {
    return await dispatch(argv, terminal);
  } catch (thrown) {
    terminal.stderr.write(failureText(thrown));
    return isKvError(thrown) ? (exitCodes[thrown.code] ?? ExitCode.failure) : ExitCode.failure;
  }
}
