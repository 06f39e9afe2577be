import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../", import.meta.url));
export const kvtScript = `${root}bin/kvt.js`;

function newest(folder: string): number {
  return Math.max(
    ...readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => statSync(`${entry.parentPath}/${entry.name}`).mtimeMs),
  );
}

/** bin/kvt.js runs dist/: compiles it when it is older than src/. */
export function buildKvt(): void {
  const built = `${root}dist/cli/main.js`;
  if (existsSync(built) && statSync(built).mtimeMs > newest(`${root}src`)) return;
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], { cwd: root });
}

export interface KvtProcess {
  readonly child: ChildProcess;
  readonly output: () => string;
  /** Exit code, or the name of the signal that ended it. */
  readonly ended: Promise<number | string>;
  /** Resolves when standard output or error holds the text; rejects when the process ends without it. */
  said(text: string | RegExp): Promise<void>;
}

/**
 * Starts the real executable. The test ends it: `child.kill()`, or by waiting for `ended`.
 * @param entry a command line that starts it where it is to live, "nsenter ..." for one
 */
export function startKvt(
  argv: readonly string[],
  env: Readonly<Record<string, string>> = {},
  entry: readonly string[] = [],
): KvtProcess {
  const [program = "", ...args] = [...entry, process.execPath, kvtScript, ...argv];
  const child = spawn(program, args, {
    cwd: root,
    env: { ...process.env, NO_COLOR: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  const waiting = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (bytes: Buffer) => {
      output += bytes.toString();
      for (const look of waiting) look();
    });
  }
  const ended = new Promise<number | string>((resolve) => {
    child.once("close", (code, signal) => resolve(code ?? signal ?? "unknown"));
  });
  const said = (text: string | RegExp): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (typeof text === "string" ? !output.includes(text) : !text.test(output)) return;
        waiting.delete(look);
        resolve();
      };
      waiting.add(look);
      look();
      void ended.then((outcome) => reject(new Error(`ended (${outcome}) without saying ${text}: ${output}`)));
    });
  return { child, output: () => output, ended, said };
}
