import { spawn } from "node:child_process";
import { nativeFile } from "../native/loader.ts";
import type { NativeNixlProbe, NativeNixlReport } from "../native/nixl_binding.ts";
import { nixlEnvironment } from "./environment.ts";
import type { NixlEnv } from "./places.ts";

/** Loading takes 0.1 s, a trial up to 1 s; LIBFABRIC without its progress hangs for ever. */
const LIMIT_MS = 30_000;
const MARK = "kv-transceiver nixl:";
const STDERR_KEPT = 4_000;

// NIXL and UCX write to both streams when they like: the answer is the line with the mark.
const CHILD_SOURCE = `
const module_ = { exports: {} };
process.dlopen(module_, process.argv[1]);
let answer;
try {
  answer = { report: module_.exports.probeNixl(JSON.parse(process.argv[2])) };
} catch (error) {
  answer = { why: String(error.message) };
}
require("node:fs").writeSync(1, ${JSON.stringify(`\n${MARK}`)} + JSON.stringify(answer) + "\\n");
process.exit(0);
`;

/** What a library is good for and what NIXL and UCX said meanwhile, or one sentence about why it is good for nothing. */
export type NixlProbe =
  | { readonly report: NativeNixlReport; readonly said: readonly string[] }
  | { readonly why: string };

/**
 * Loads a NIXL library in a child process, because one that is broken may crash or hang whoever loads it. Never throws for what the
 * library does.
 * @param env the environment that NIXL reads; what it needs beyond that is added
 * @throws KvError NATIVE_NOT_FOUND, NATIVE_BROKEN
 */
export async function probeNixl(options: NativeNixlProbe, env: NixlEnv = process.env): Promise<NixlProbe> {
  const { code, signal, stdout, stderr } = await runChild(options, env);
  const lines = stdout.split("\n");
  const line = lines.find((text) => text.startsWith(MARK));
  if (line !== undefined) {
    const answer = JSON.parse(line.slice(MARK.length)) as { report: NativeNixlReport } | { why: string };
    const said = lines.filter((text) => text !== "" && text !== line);
    return "report" in answer ? { ...answer, said } : answer;
  }
  const said = stderr.trim().split("\n").at(-1) ?? "";
  const end =
    signal === "SIGKILL" ? `did not end within ${LIMIT_MS / 1000} s` : `ended with ${signal ?? `code ${code}`}`;
  return { why: `a process that tried ${options.library} ${end}${said === "" ? "" : ` (${said})`}` };
}

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runChild(options: NativeNixlProbe, env: NixlEnv): Promise<Ended> {
  // NODE_OPTIONS may hold a debugger's port or a loader that the child does not need.
  const { NODE_OPTIONS: _, ...kept } = env;
  const child = spawn(process.execPath, ["-e", CHILD_SOURCE, nativeFile(), JSON.stringify(options)], {
    env: { ...kept, ...nixlEnvironment(env) },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: LIMIT_MS,
    killSignal: "SIGKILL",
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-STDERR_KEPT);
  });
  return new Promise((resolve) => {
    child.on("error", (error) => resolve({ code: null, signal: null, stdout, stderr: error.message }));
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}
