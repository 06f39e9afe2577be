import { Presets, SingleBar } from "cli-progress";
import { type InstallOptions, installNixl, NIXL_VERSION, NIXL_VERSION_WITH_LIBFABRIC } from "../nixl/wheel.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";

const flags = {
  version: {
    kind: "string",
    value: "V",
    help: `which NIXL (default ${NIXL_VERSION}; with libfabric ${NIXL_VERSION_WITH_LIBFABRIC}); known to work: 0.10.1, 1.0.1, 1.3.0, 1.4.1, 1.5.1`,
  },
  with_libfabric: {
    kind: "boolean",
    help: "bring libfabric, hwloc and libcudart for plug-in LIBFABRIC too; libcuda comes with NVIDIA's driver only",
  },
} as const satisfies FlagTable;

/** What ends an install in good order: nothing of it stays. */
const ENDING = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

const mega = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

/** On a terminal one line that changes, else a line for each step. */
function progress({ stderr }: Terminal): { readonly show: InstallOptions["onProgress"]; readonly end: () => void } {
  if (!("isTTY" in stderr) || stderr.isTTY !== true) {
    let last = "";
    const show = (step: string) => {
      if (step !== last) stderr.write(`${step}\n`);
      last = step;
    };
    return { show, end: () => {} };
  }
  const format = "{step}  {size}  {duration_formatted}";
  const bar = new SingleBar({ format, stream: stderr as NodeJS.WriteStream, hideCursor: true }, Presets.shades_classic);
  bar.start(1, 0, { step: "", size: "" });
  return {
    show: (step, bytes) => bar.update(0, { step, size: bytes > 0 ? mega(bytes) : "" }),
    end: () => bar.stop(),
  };
}

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("nixl", flags, argv);
  const [action, extra] = positionals;
  if (action !== "install" || extra !== undefined) throw usage("nixl", "write kvt nixl install");
  const withLibfabric = given.with_libfabric?.value ?? false;
  const version = given.version?.value ?? (withLibfabric ? NIXL_VERSION_WITH_LIBFABRIC : NIXL_VERSION);
  if (!/^\d+\.\d+\.\d+$/.test(version))
    throw usage("nixl", `--version ${version} is no version such as ${NIXL_VERSION}`);
  if (withLibfabric && version.localeCompare("1.5.0", "en", { numeric: true }) > 0) {
    const what = `plug-in LIBFABRIC of NIXL ${version} needs a newer libfabric than PyPI has`;
    throw usage("nixl", `${what}; with --with-libfabric take --version ${NIXL_VERSION_WITH_LIBFABRIC}`);
  }
  const shown = progress(terminal);
  const interrupted = new AbortController();
  const interrupt = () => interrupted.abort();
  for (const name of ENDING) process.once(name, interrupt);
  try {
    const { home, report, libfabric } = await installNixl({
      version,
      withLibfabric,
      env: terminal.env,
      onProgress: shown.show,
      signal: interrupted.signal,
    });
    shown.end();
    const { trial } = report;
    const took = trial === null ? "" : ` (plug-in UCX opened in ${trial.openMs.toFixed(0)} ms)`;
    terminal.stdout.write(
      `NIXL ${report.version ?? version} is in ${home} and works${took}; it is taken from now on\n`,
    );
    if (withLibfabric && libfabric !== null) terminal.stdout.write(`but ${libfabric}\n`);
    return ExitCode.ok;
  } finally {
    shown.end();
    for (const name of ENDING) process.removeListener(name, interrupt);
  }
}

export const nixl: Command = {
  name: "nixl",
  usage: "nixl install [flags]",
  about:
    "Brings NIXL, which moves KV to other hosts: a wheel of NVIDIA from PyPI, by name through pip, whose libraries are unpacked into the " +
    "user's data directory and tried in a child process. Nothing is installed into Python. kvt doctor shows what is found.",
  examples: ["kvt nixl install", "kvt nixl install --version 1.4.1 --with-libfabric"],
  flags,
  run,
};
