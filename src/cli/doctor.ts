import { examine } from "../doctor/report.ts";
import { doctorText } from "../doctor/text.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";
import { paintFor } from "./paint.ts";

const flags = {
  json: { kind: "boolean", help: "print JSON: host, nixl, cuda, paths, problems" },
} as const satisfies FlagTable;

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("doctor", flags, argv);
  if (positionals[0] !== undefined) throw usage("doctor", `${positionals[0]} is not expected here`);
  const report = await examine(terminal.env);
  if (given.json?.value) {
    terminal.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  } else {
    const paint = paintFor(terminal);
    terminal.stdout.write(doctorText(report, { good: paint.green, bad: paint.red, dim: paint.dim, head: paint.bold }));
  }
  return report.problems.length > 0 ? ExitCode.failure : ExitCode.ok;
}

export const doctor: Command = {
  name: "doctor",
  usage: "doctor [flags]",
  about:
    "Tells how KV can move on this machine and why not otherwise: the addon, huge pages and limits, which NIXL is found and where it was " +
    "looked for, which of its plug-ins can be loaded and what the others lack, what UCX takes, GPUs, and the paths. Exit code 1 when " +
    "something is broken; a NIXL that is not installed is not.",
  examples: ["kvt doctor", "kvt doctor --json", "KVT_NIXL_LIBRARY=/opt/nixl/lib kvt doctor"],
  flags,
  run,
};
