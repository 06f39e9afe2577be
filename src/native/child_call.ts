import { spawn } from "node:child_process";
import { nativeFile } from "./loader.ts";

const LIMIT_MS = 30_000;
const MARK = "kv-transceiver answer:";
const STDERR_KEPT = 4_000;

// Foreign libraries write to both streams when they like: the answer is the line with the mark.
const CHILD_SOURCE = `
const module_ = { exports: {} };
process.dlopen(module_, process.argv[1]);
let answer;
try {
  answer = { value: module_.exports[process.argv[2]](...JSON.parse(process.argv[3])) };
} catch (error) {
  answer = { why: String(error.message) };
}
require("node:fs").writeSync(1, ${JSON.stringify(`\n${MARK}`)} + JSON.stringify(answer) + "\\n");
process.exit(0);
`;

/** What a call gave, with what the libraries below it said on standard output; or one sentence about why it gave nothing. */
export type ChildAnswer<Value> = { readonly value: Value; readonly said: readonly string[] } | { readonly why: string };

export interface ChildCall {
  /** A function of the addon. */
  readonly name: "probeNixl" | "probeCuda";
  readonly argument?: object;
  /** For the sentence: `/opt/nixl/libnixl_capi.so`. */
  readonly tried: string;
  /** All of the child's. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * Calls a function of the addon in a child process, because foreign libraries that are broken may crash or hang whoever loads them. Never throws
 * for what they do.
 * @throws KvError NATIVE_NOT_FOUND, NATIVE_BROKEN
 */
export async function callInChild<Value>(call: ChildCall): Promise<ChildAnswer<Value>> {
  const { code, signal, stdout, stderr } = await runChild(call);
  const lines = stdout.split("\n");
  const line = lines.find((text) => text.startsWith(MARK));
  if (line !== undefined) {
    const answer = JSON.parse(line.slice(MARK.length)) as { value: Value } | { why: string };
    const said = lines.filter((text) => text !== "" && text !== line);
    return "value" in answer ? { ...answer, said } : answer;
  }
  const said = stderr.trim().split("\n").at(-1) ?? "";
  const end =
    signal === "SIGKILL" ? `did not end within ${LIMIT_MS / 1000} s` : `ended with ${signal ?? `code ${code}`}`;
  return { why: `a process that tried ${call.tried} ${end}${said === "" ? "" : ` (${said})`}` };
}

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runChild({ name, argument, env }: ChildCall): Promise<Ended> {
  // NODE_OPTIONS may hold a debugger's port or a loader that the child does not need.
  const { NODE_OPTIONS: _, ...kept } = env;
  const words = JSON.stringify(argument === undefined ? [] : [argument]);
  const child = spawn(process.execPath, ["-e", CHILD_SOURCE, nativeFile(), name, words], {
    env: kept,
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
