import { KvError } from "../errors.ts";
import { type FlagTable, parseArguments, usage } from "./arguments.ts";
import { ask, type Reply } from "./ask.ts";
import { type Command, ExitCode, type Terminal } from "./command.ts";
import { type HiddenKey, hideKey } from "./demo_story.ts";
import { Deployment, type Member } from "./deployment.ts";
import { packageFile } from "./package_files.ts";
import { type Paint, paintFor } from "./paint.ts";
import { freePorts } from "./ports.ts";
import { recordsOf, renderTimeline, spansOf } from "./timeline.ts";

const model = packageFile("models/tiny.gguf");
const files = {
  context: packageFile("examples/basic/ctx_config.yaml"),
  generation: packageFile("examples/basic/gen_config.yaml"),
  router: packageFile("examples/basic/disagg_config.yaml"),
  story: packageFile("examples/basic/story.txt"),
};

const START_TIMEOUT_MS = 45_000;
const ANSWER_TOKENS = 24;
/** The router's and the workers' ports of examples/basic/disagg_config.yaml. */
const EXAMPLE_PORT = 8000;

const flags = {
  keep: { kind: "boolean", help: "leave the deployment up until Ctrl-C, and print commands to try" },
  port: {
    kind: "integer",
    min: 1,
    max: 65532,
    help: "router's port, the workers take the next three (default: free ports; with --keep 8000)",
  },
  device: { kind: "string", value: "NAME", help: "cpu (default); GPUs are not built yet" },
} as const satisfies FlagTable;

/** One run of the demo: what it started, where it writes. */
class Demo {
  readonly #deployment: Deployment;
  readonly #terminal: Terminal;
  readonly #paint: Paint;
  readonly #signal: AbortSignal;

  constructor(deployment: Deployment, terminal: Terminal, signal: AbortSignal) {
    this.#deployment = deployment;
    this.#terminal = terminal;
    this.#paint = paintFor(terminal);
    this.#signal = signal;
  }

  #line(text = ""): void {
    this.#terminal.stdout.write(`${text}\n`);
  }

  async run(ports: readonly number[], keep: boolean): Promise<void> {
    const paint = this.#paint;
    this.#line(paint.bold("kv-transceiver demo"));
    this.#line(
      "A prompt is read in one process. Its KV cache moves to another process, which writes the answer from it.\n",
    );
    const [routerPort = 0, first = 0, second = 0, third = 0] = ports;
    const members = await this.#startBasic({ router: routerPort, context: [first, second], generation: [third] });
    await this.#greet(members);
    const hidden = hideKey(files.story);
    this.#tellPrompt(hidden);
    const main = await this.#askAloud(members.router, hidden);
    await this.#tellTimeline(members, main);
    await this.#prove(members, hidden, main);
    if (keep) await this.#keep(members);
  }

  async #startBasic(ports: { router: number; context: number[]; generation: number[] }): Promise<Basic> {
    const started = performance.now();
    const worker = (name: string, port: number, config: string, env: Record<string, string> = {}): Member =>
      this.#deployment.start({
        name,
        port,
        arguments: ["serve", model, "--host", "localhost", "--port", String(port), "--config", config],
        env,
      });
    const context = ports.context.map((port, i) => worker(`context ${i + 1}`, port, files.context));
    const generation = ports.generation.map((port) => worker("generation", port, files.generation));
    const router = this.#startRouter("router", ports);
    const members = [...context, ...generation, router];
    await Promise.all(members.map((member) => this.#deployment.ready(member, START_TIMEOUT_MS, this.#signal)));
    for (const { name, url, pid } of members) {
      this.#line(`  ${name.padEnd(12)} ${url.padEnd(24)} ${this.#paint.dim(`pid ${pid}`)}`);
    }
    this.#line(`${this.#paint.dim(`  4 processes ready in ${((performance.now() - started) / 1000).toFixed(1)} s`)}\n`);
    const [only] = generation;
    if (!only) throw new KvError("INTERNAL", { where: "demo", why: "no generation worker" });
    return { context, generation: only, router };
  }

  #startRouter(name: string, ports: { router: number; context: number[]; generation: number[] }): Member {
    const file = this.#deployment.routerFile(files.router, ports);
    return this.#deployment.start({ name, port: ports.router, arguments: ["disaggregated", "-c", file] });
  }

  /** Each context worker's first transfer connects the pair and maps its pool; the time line below shows one without that. */
  async #greet({ router, context }: Basic): Promise<void> {
    const body = {
      model: "tiny",
      messages: [{ role: "user", content: "Hello!" }],
      max_tokens: ANSWER_TOKENS,
      temperature: 0,
    };
    let text = "";
    for (const _ of context) {
      text = (await ask({ server: router.url, endpoint: "chat", body, signal: this.#signal })).text;
    }
    this.#line(
      `${this.#paint.bold("Warm-up")}   Hello! -> ${text}  ${this.#paint.dim("(once by each context worker)")}`,
    );
  }

  #tellPrompt({ excerpt, story, question }: HiddenKey): void {
    const { bold, dim, yellow } = this.#paint;
    this.#line(
      `${bold("Prompt")}    a story of ${story.length.toLocaleString("en-US")} characters; somewhere in it stands`,
    );
    this.#line(`          ${dim(`... ${excerpt.before}`)}${yellow(excerpt.key)}${dim(`${excerpt.after} ...`)}`);
    this.#line(`${bold("Question")}  ${question}`);
  }

  #body(hidden: HiddenKey): Record<string, unknown> {
    return {
      model: "tiny",
      messages: [{ role: "user", content: `${hidden.story} ${hidden.question}` }],
      max_tokens: ANSWER_TOKENS,
      temperature: 0,
      logprobs: true,
    };
  }

  async #askAloud(router: Member, hidden: HiddenKey): Promise<Reply> {
    const { stdout } = this.#terminal;
    stdout.write(`${this.#paint.bold("Answer")}    `);
    const reply = await ask({
      server: router.url,
      endpoint: "chat",
      body: { ...this.#body(hidden), stream: true, stream_options: { include_usage: true } },
      signal: this.#signal,
      onText: (text) => stdout.write(this.#paint.green(text)),
    }).catch((thrown: unknown) => {
      this.#line();
      throw thrown;
    });
    this.#line(`  ${this.#paint.dim(`(first word after ${Math.round(reply.firstTextMs)} ms, streamed)`)}\n`);
    if (!reply.text.includes(hidden.key)) {
      throw new KvError("DEMO_FAILED", { why: `the answer should name ${hidden.key}`, answer: reply.text });
    }
    return reply;
  }

  async #tellTimeline(members: Basic, reply: Reply): Promise<void> {
    const token = this.#terminal.env.KVT_AUTH_TOKEN;
    const workers = [...members.context, members.generation];
    const records = await Promise.all(workers.map((member) => recordsOf(member, reply.requestId, token)));
    const context = records.find(({ request }) => request?.role === "context");
    const generation = records.find(({ received }) => received);
    if (!context || !generation) {
      throw new KvError("DEMO_FAILED", { why: "no worker reports the transfer", answer: reply.requestId });
    }
    this.#line(`${this.#paint.bold("Time line")} ${this.#paint.dim("as the workers measured it")}`);
    for (const line of renderTimeline(spansOf(context, generation), this.#paint)) this.#line(`  ${line}`);
    this.#line();
  }

  /** The same question to one ordinary worker, and to a generation worker that gets its blocks zeroed. */
  async #prove(members: Basic, hidden: HiddenKey, main: Reply): Promise<void> {
    const { bold, green, dim } = this.#paint;
    this.#line(bold("Proof"));
    const [alonePort = 0, zeroedPort = 0, routerPort = 0] = await freePorts(3);
    const serve = (name: string, port: number, more: readonly string[], env: Record<string, string> = {}): Member =>
      this.#deployment.start({ name, port, arguments: ["serve", model, "--port", String(port), ...more], env });
    const alone = serve("alone", alonePort, []);
    const zeroed = serve("zeroed", zeroedPort, ["--config", files.generation], { KVT_TEST_ZERO_KV: "1" });
    const router = this.#startRouter("zeroed router", {
      router: routerPort,
      context: members.context.map(({ port }) => port),
      generation: [zeroed.port],
    });
    const extra = [alone, zeroed, router];
    await Promise.all(extra.map((member) => this.#deployment.ready(member, START_TIMEOUT_MS, this.#signal)));
    const [single, empty] = await Promise.all(
      [alone, router].map((member) =>
        ask({ server: member.url, endpoint: "chat", body: this.#body(hidden), signal: this.#signal }),
      ),
    );
    if (!single || !empty) throw new KvError("INTERNAL", { where: "demo", why: "an answer is missing" });
    compare(main, single, empty);
    const bits = `${main.logprobs.length} tokens and their probabilities, equal to the last bit`;
    this.#line(`  ${green("✓")} one ordinary worker without a transfer gives the same answer: ${bits}`);
    this.#line(`  ${green("✓")} with an empty cache in place of the moved one it would be: ${shown(empty.text)}`);
    this.#line(dim("    (the same context workers, and a generation worker that zeroes the blocks it has received)"));
    this.#line();
    await this.#deployment.stop(extra);
  }

  async #keep(members: Basic): Promise<void> {
    const { bold, dim } = this.#paint;
    const { url } = members.router;
    const post = (path: string, body: unknown): string =>
      `  curl ${url}${path} -H 'Content-Type: application/json' -d '${JSON.stringify(body)}' -w '\\n'`;
    const prompt = "Once upon a time, there was a little girl named Lily. She lived in";
    this.#line(`${bold("The deployment stays up")} until Ctrl-C. Try:`);
    this.#line(post("/v1/completions", { model: "tiny", prompt, max_tokens: 16, temperature: 0 }));
    const messages = [{ role: "user", content: "My name is Ada and I live in Oslo. Where do I live?" }];
    this.#line(post("/v1/chat/completions", { model: "tiny", messages, max_tokens: 16, temperature: 0, stream: true }));
    this.#line(`  curl ${url}/cluster_info`);
    this.#line(dim(`Logs: ${this.#deployment.folder}`));
    await new Promise<void>((resolve) => this.#signal.addEventListener("abort", () => resolve(), { once: true }));
  }
}

interface Basic {
  readonly context: readonly Member[];
  readonly generation: Member;
  readonly router: Member;
}

const shown = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text);

/** @throws KvError DEMO_FAILED when the moved cache did not do what it is claimed to do */
function compare(main: Reply, single: Reply, empty: Reply): void {
  if (main.text !== single.text) {
    const why = `one worker alone answers ${shown(single.text)}`;
    throw new KvError("DEMO_FAILED", { why, answer: main.text });
  }
  const sameBits = main.logprobs.length > 0 && main.logprobs.every((value, i) => Object.is(value, single.logprobs[i]));
  if (!sameBits || main.logprobs.length !== single.logprobs.length) {
    throw new KvError("DEMO_FAILED", { why: "the tokens' probabilities differ from one worker's", answer: main.text });
  }
  if (empty.text === main.text) {
    throw new KvError("DEMO_FAILED", { why: "an empty cache gave the same answer", answer: main.text });
  }
}

async function run(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { flags: given, positionals } = parseArguments("demo", flags, argv);
  if (positionals[0] !== undefined) throw usage("demo", `${positionals[0]} is not expected here`);
  const device = given.device?.value ?? "cpu";
  if (device !== "cpu")
    throw usage("demo", `--device ${device}: engines on a GPU are not built yet; leave the flag out`);
  const keep = given.keep?.value ?? false;
  const port = given.port?.value ?? (keep ? EXAMPLE_PORT : undefined);
  const ports = await freePorts(4, port === undefined ? undefined : [port, port + 1, port + 2, port + 3]);

  const deployment = new Deployment(terminal.env);
  const interrupted = new AbortController();
  let signals = 0;
  const onSignal = (): void => {
    if (++signals > 1) process.exit(ExitCode.failure);
    interrupted.abort(new KvError("CANCELLED", { transfer: "of the demo", why: "interrupted" }));
  };
  const onExit = (): void => deployment.killAll();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, onSignal);
  process.on("exit", onExit);
  try {
    await new Demo(deployment, terminal, interrupted.signal).run(ports, keep);
    return ExitCode.ok;
  } catch (thrown) {
    if (!interrupted.signal.aborted) throw thrown;
    return keep ? ExitCode.ok : ExitCode.failure;
  } finally {
    const count = await deployment.stop();
    terminal.stdout.write(`${paintFor(terminal).dim(`All ${count} processes have ended.`)}\n`);
    process.off("exit", onExit);
    for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.off(name, onSignal);
  }
}

export const demo: Command = {
  name: "demo",
  usage: "demo [flags]",
  about:
    "Starts two context workers, one generation worker and a router on this machine with a tiny embedded model, asks for a pass " +
    "key that is hidden in a long story, shows where the time went, and proves that the answer came from the moved KV cache.",
  examples: ["kvt demo", "kvt demo --keep", "kvt demo --keep --port 9000"],
  flags,
  run,
};
