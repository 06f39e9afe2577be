import { readFileSync, writeFileSync } from "node:fs";
import { Presets, SingleBar } from "cli-progress";
import { z } from "zod";
import { readSource } from "../config/file_rules.ts";
import { Problems } from "../config/problems.ts";
import { parseRouterFile } from "../config/router_settings.ts";
import { KvError } from "../errors.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { ask, type Reply, waitUntilHealthy } from "./ask.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";

const DEFAULT_MODEL = "TinyLlama/TinyLlama-1.1B-Chat-v1.0";
const HEALTH_PERIOD_MS = 1_000;

const flags = {
  disagg_config_file: {
    kind: "string",
    short: "c",
    value: "FILE",
    help: "the router's YAML: hostname, port and model are read from it (required)",
  },
  prompts_file: { kind: "string", short: "p", value: "FILE", help: "JSON list of prompts (required)" },
  endpoint: {
    kind: "choice",
    short: "e",
    choices: { completions: "completions", chat: "chat" },
    help: "completions (default) sends each prompt as it is, chat as a user's message",
  },
  max_tokens: { kind: "integer", min: 1, help: "longest answer in tokens (default 100)" },
  temperature: { kind: "number", min: 0, help: "0 (default) takes the likeliest token each time" },
  server_start_timeout: {
    kind: "number",
    min: 0,
    value: "SECONDS",
    help: "wait this long for the server to be ready (default: do not wait)",
  },
  streaming: { kind: "boolean", help: "receive the answers token by token" },
  ignore_eos: { kind: "boolean", help: "go on to max_tokens even where the model would stop" },
  output_file: { kind: "string", short: "o", value: "FILE", help: "the answers, a JSON list (default output.json)" },
} as const satisfies FlagTable;

const Prompts = z.array(z.string()).min(1);

function readPrompts(file: string): string[] {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (thrown) {
    const why = thrown instanceof Error ? thrown.message : String(thrown);
    throw usage("client", `the prompts file ${file} can't be read: ${why}`);
  }
  const prompts = Prompts.safeParse(value);
  if (prompts.success) return prompts.data;
  throw usage("client", `the prompts file ${file} must hold a JSON list of strings, at least one`);
}

/** Address and model of the router that a file describes. */
function readServer(file: string): { readonly server: string; readonly model: string } {
  const problems = new Problems();
  const source = readSource(file, problems);
  const parsed = source ? parseRouterFile(source, problems) : undefined;
  problems.throwIfFatal();
  const host = parsed?.hostname ?? "localhost";
  // A bind address that means "all" is no address to connect to.
  const target = host === "0.0.0.0" || host === "::" ? "localhost" : host.includes(":") ? `[${host}]` : host;
  return { server: `http://${target}:${parsed?.port ?? 8000}`, model: parsed?.model ?? DEFAULT_MODEL };
}

function body(
  endpoint: "completions" | "chat",
  prompt: string,
  options: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  if (endpoint === "completions") return { ...options, prompt };
  const messages = [
    { role: "system", content: "You are a helpful assistant." },
    { role: "user", content: prompt },
  ];
  return { ...options, messages };
}

/** A bar on a terminal; nothing elsewhere, where it would fill a log. */
function progressBar(terminal: Terminal, total: number): { done(): void; stop(): void } {
  const { stderr } = terminal;
  if (!("isTTY" in stderr) || !stderr.isTTY) return { done: () => {}, stop: () => {} };
  const bar = new SingleBar(
    { format: "  {bar} {value}/{total} answers  {duration_formatted}", stream: stderr, hideCursor: true },
    Presets.shades_classic,
  );
  bar.start(total, 0);
  return { done: () => bar.increment(), stop: () => bar.stop() };
}

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("client", flags, argv);
  if (positionals[0] !== undefined) throw usage("client", `${positionals[0]} is not expected here`);
  const missing = (["disagg_config_file", "prompts_file"] as const).filter((name) => given[name] === undefined);
  if (missing.length > 0) {
    const names = missing.map((name) => `--${name} (-${flags[name].short})`).join(" and ");
    throw usage("client", `${names} must be given`);
  }
  const prompts = readPrompts(given.prompts_file?.value ?? "");
  const { server, model } = readServer(given.disagg_config_file?.value ?? "");
  const endpoint = given.endpoint?.value ?? "completions";
  const wait = given.server_start_timeout?.value;
  if (wait !== undefined && !(await waitUntilHealthy(server, wait * 1000, HEALTH_PERIOD_MS))) {
    throw new KvError("START_TIMEOUT", { seconds: wait, missing: server });
  }
  const options = {
    model,
    max_tokens: given.max_tokens?.value ?? 100,
    temperature: given.temperature?.value ?? 0,
    ...(given.ignore_eos?.value ? { ignore_eos: true } : {}),
    ...(given.streaming?.value ? { stream: true } : {}),
  };
  const bar = progressBar(terminal, prompts.length);
  const started = performance.now();
  const replies = await Promise.allSettled(
    prompts.map((prompt) => ask({ server, endpoint, body: body(endpoint, prompt, options) }).finally(bar.done)),
  );
  bar.stop();
  return report(replies, given.output_file?.value ?? "output.json", performance.now() - started, terminal);
}

function report(replies: readonly PromiseSettledResult<Reply>[], file: string, ms: number, terminal: Terminal): number {
  const failures = replies.flatMap((reply, i) => (reply.status === "rejected" ? [{ i, reason: reply.reason }] : []));
  for (const { i, reason } of failures) {
    terminal.stderr.write(`prompt ${i + 1}: ${reason instanceof Error ? reason.message : String(reason)}\n`);
  }
  if (failures.length > 0) {
    terminal.stderr.write(`${failures.length} of ${replies.length} prompts failed; ${file} is not written\n`);
    return ExitCode.failure;
  }
  const texts = replies.map((reply) => (reply.status === "fulfilled" ? reply.value.text : ""));
  writeFileSync(file, `${JSON.stringify(texts, null, 2)}\n`);
  terminal.stdout.write(`${texts.length} answers in ${(ms / 1000).toFixed(2)} s, written to ${file}\n`);
  return ExitCode.ok;
}

export const client: Command = {
  name: "client",
  usage: "client -c FILE -p FILE [flags]",
  about:
    "Sends all prompts of a JSON file at once to the router that a disaggregated YAML file describes, and writes the answers, " +
    "in the order of the prompts, as a JSON list.",
  examples: [
    "kvt client -c examples/basic/disagg_config.yaml -p examples/basic/prompts.json",
    "kvt client -c disagg_config.yaml -p prompts.json -e chat --streaming --server-start-timeout 60",
  ],
  flags,
  run,
};
