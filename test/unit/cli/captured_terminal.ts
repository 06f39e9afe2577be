import { Writable } from "node:stream";
import type { Terminal } from "../../../src/cli/command.ts";
import type { Env } from "../../../src/config/environment.ts";

/** A terminal of strings; with `isTTY` its error stream says that a person looks at it. */
export function capturedTerminal(
  env: Env = {},
  { isTTY = false } = {},
): Terminal & { readonly out: () => string; readonly err: () => string } {
  const written = { out: "", err: "" };
  const stream = (name: "out" | "err") =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        written[name] += chunk.toString();
        callback();
      },
    });
  const stderr = isTTY ? Object.assign(stream("err"), { isTTY, columns: 80 }) : stream("err");
  return { stdout: stream("out"), stderr, env, out: () => written.out, err: () => written.err };
}
