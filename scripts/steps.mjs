// How the scripts talk: one line a step with the time it took; a program's own output only when it fails or KVT_VERBOSE=1.
import { spawn } from "node:child_process";

const tty = process.stdout.isTTY === true && process.env.CI === undefined;
const verbose = process.env.KVT_VERBOSE === "1";
const TAIL_LINES = 60;
/** From the wish that a program ends to its end by force. */
const GRACE_MS = 20_000;

/** A failure that is told in sentences, without a stack. */
export class Told extends Error {}

export const seconds = (ms) =>
  ms < 59_500 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;

/**
 * Runs `work` as one visible step. `work` gets `say(text)` for what is going on right now (shown on a terminal only); a string
 * it returns is put behind the title, as is the `note` of an object `{ note, failed }`, which may also say that it failed.
 */
export async function step(title, work) {
  const started = Date.now();
  let now = "";
  const draw = () =>
    process.stdout.write(`\r\x1b[2K… ${title}  ${seconds(Date.now() - started)}${now === "" ? "" : `  ${now}`}`);
  const ticking = tty && !verbose ? setInterval(draw, 200) : undefined;
  const done = (mark, note) => {
    clearInterval(ticking);
    process.stdout.write(
      `${ticking === undefined ? "" : "\r\x1b[2K"}${mark} ${title}${note ? `: ${note}` : ""}  (${seconds(Date.now() - started)})\n`,
    );
  };
  try {
    const result = await work((text) => {
      now = text.slice(0, 60);
    });
    if (typeof result === "string") done("✓", result);
    else done(result?.failed ? "✗" : "✓", result?.note ?? "");
    return result;
  } catch (error) {
    done("✗", "");
    throw error;
  }
}

/**
 * Runs a program to its end and gives its output. `show: true` passes the output on as it comes. After `timeoutMs` it is told to end, so
 * that it can end what it has started, and is not waited for much longer.
 * @throws Told with the last lines of the output when the program fails, unless `mayFail`
 */
export function run(command, args, { cwd, env, onLine, show = verbose, mayFail = false, timeoutMs } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: env ?? process.env, stdio: ["ignore", "pipe", "pipe"] });
    const end = () => {
      child.kill("SIGTERM");
      timer = setTimeout(() => {
        child.kill("SIGKILL");
        // What it had started may hold these open for ever.
        for (const stream of [child.stdout, child.stderr]) stream.destroy();
      }, GRACE_MS);
    };
    let timer = timeoutMs === undefined ? undefined : setTimeout(end, timeoutMs);
    let output = "";
    let rest = "";
    const take = (chunk) => {
      const text = chunk.toString();
      output += text;
      if (show) process.stdout.write(text);
      if (onLine === undefined) return;
      const lines = (rest + text).split(/\r?\n|\r/);
      rest = lines.pop() ?? "";
      for (const line of lines) onLine(line);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("error", (error) => reject(new Told(`${command} can't be started: ${error.message}`)));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (code === 0 || mayFail) return resolve({ code: code ?? 1, signal, output });
      const tail = show ? "" : `\n${output.trimEnd().split("\n").slice(-TAIL_LINES).join("\n")}`;
      const line = [command, ...args].join(" ");
      const shown = line.length > 300 ? `${line.slice(0, 300)} …` : line;
      reject(new Told(`\`${shown}\` ended with ${signal ?? `code ${code}`}${tail}`));
    });
  });
}

/** Runs a script's body, whose number is the exit code; a Told failure is printed as it is and ends with code 1, anything else is a defect and shows its stack. */
export async function main(body) {
  try {
    const code = await body();
    process.exitCode = typeof code === "number" ? code : 0;
  } catch (error) {
    console.error(error instanceof Told ? error.message : error);
    process.exitCode = 1;
  }
}
