import { examine } from "../doctor/report.ts";
import { doctorText } from "../doctor/text.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";
import { paintFor } from "./paint.ts";

const flags = {
  peer: {
    kind: "strings",
    max: 2,
    value: "HOST:PORT",
    help: "a running worker; given twice, the two are looked at as a pair: layouts, the path and why, latency and GB/s of each path",
  },
  json: { kind: "boolean", help: "print JSON: host, nixl, cuda, paths, problems, and with --peer pair" },
} as const satisfies FlagTable;

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("doctor", flags, argv);
  if (positionals[0] !== undefined) throw usage("doctor", `${positionals[0]} is not expected here`);
  const report = await examine(terminal.env, peersOf(given.peer?.value));
  if (given.json?.value) {
    terminal.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  } else {
    const paint = paintFor(terminal);
    terminal.stdout.write(doctorText(report, { good: paint.green, bad: paint.red, dim: paint.dim, head: paint.bold }));
  }
  return report.problems.length > 0 ? ExitCode.failure : ExitCode.ok;
}

function peersOf(addresses: readonly string[] | undefined): readonly [string, string] | undefined {
  const [first, second] = addresses ?? [];
  if (first === undefined) return undefined;
  if (second === undefined) throw usage("doctor", "--peer is given once: name both workers of the pair");
  for (const address of [first, second]) {
    const text = address.includes("://") ? address : `http://${address}`;
    const url = URL.canParse(text) ? new URL(text) : null;
    const plain = url !== null && /^https?:$/.test(url.protocol) && url.pathname === "/" && url.hostname !== "";
    if (!plain) throw usage("doctor", `--peer ${address} is no HOST:PORT of a worker`);
  }
  return [first, second];
}

export const doctor: Command = {
  name: "doctor",
  usage: "doctor [flags]",
  about:
    "Tells how KV can move on this machine and what to do about what is missing: the addon, huge pages and limits, which NIXL is found and " +
    "where it was looked for, which of its plug-ins can be loaded and what the others lack, UCX's transports and libfabric's providers, GPUs " +
    "and the kernels that run there, and the paths. Exit code 1 when something is broken; a NIXL or a GPU that is not there is not. It takes " +
    "some seconds and 64 MiB. With two running workers it measures between them too, in 32 MiB of each; KVT_AUTH_TOKEN is sent when it is set.",
  examples: [
    "kvt doctor",
    "kvt doctor --json",
    "kvt doctor --peer ctx:8001 --peer gen:8002",
    "KVT_NIXL_LIBRARY=/opt/nixl/lib kvt doctor",
  ],
  flags,
  run,
};
