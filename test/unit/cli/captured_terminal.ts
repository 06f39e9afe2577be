import { Writable } from "node:stream";
import type { Terminal } from "../../../src/cli/command.ts";
import type { Env } from "../../../src/config/environment.ts";

/** A terminal of strings. */
export function capturedTerminal(env: Env = {}): Terminal & { readonly out: () => string; readonly err: () => string } {
  const written = { out: "", err: "" };
  const stream = (name: "out" | "err") =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        written[name] += chunk.toString();
        callback();
      },
    });
  return { stdout: stream("out"), stderr: stream("err"), env, out: () => written.out, err: () => written.err };
}
