import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ask } from "../../src/cli/ask.ts";
import { Deployment, type Member } from "../../src/cli/deployment.ts";
import { freePorts } from "../../src/cli/ports.ts";
import { buildKvt, startKvt } from "../integration/cli/kvt_process.ts";

// The commands of examples/basic/README.md, at free ports.
const deployment = new Deployment(process.env);
const folder = mkdtempSync(join(tmpdir(), "kvt-basic-"));
let router: Member;
let generation: Member;
let alone: Member;
let routerFile: string;

beforeAll(async () => {
  buildKvt();
  const [port = 0, first = 0, second = 0, third = 0, fourth = 0] = await freePorts(5);
  const serve = (name: string, at: number, ...more: string[]): Member =>
    deployment.start({ name, port: at, arguments: ["serve", "models/tiny.gguf", "--port", String(at), ...more] });
  const config = (name: string): string => `examples/basic/${name}`;
  const contexts = [first, second].map((at, i) =>
    serve(`context ${i}`, at, "--extra_llm_api_options", config("ctx_config.yaml")),
  );
  generation = serve("generation", third, "--config", config("gen_config.yaml"));
  alone = serve("alone", fourth);
  routerFile = deployment.routerFile(config("disagg_config.yaml"), {
    router: port,
    context: [first, second],
    generation: [third],
  });
  router = deployment.start({ name: "router", port, arguments: ["disaggregated", "-c", routerFile] });
  const never = new AbortController().signal;
  await Promise.all([...contexts, generation, alone, router].map((member) => deployment.ready(member, 60_000, never)));
}, 120_000);

afterAll(async () => {
  await deployment.stop();
  rmSync(folder, { recursive: true, force: true });
});

interface Golden {
  readonly prompts: readonly {
    readonly kind: string;
    readonly text: string;
    readonly output_text: string;
    readonly messages?: { role: string; content: string }[];
    readonly output_ids: number[];
  }[];
}
const golden = JSON.parse(readFileSync("models/golden.json", "utf8")) as Golden;

async function client(prompts: readonly string[], ...more: string[]): Promise<string[]> {
  const [promptsFile, output] = [join(folder, "prompts.json"), join(folder, "output.json")];
  rmSync(output, { force: true });
  writeFileSync(promptsFile, JSON.stringify(prompts));
  const started = startKvt([
    "client",
    "-c",
    routerFile,
    "-p",
    promptsFile,
    "-o",
    output,
    "--max-tokens",
    "48",
    ...more,
  ]);
  const code = await started.ended;
  if (code !== 0) throw new Error(`kvt client ended with ${code}: ${started.output()}`);
  return JSON.parse(readFileSync(output, "utf8")) as string[];
}

describe("the basic example", { timeout: 120_000 }, () => {
  it("answers the seed's curl", async () => {
    const response = await fetch(`${router.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        prompt: "NVIDIA is a great company because",
        max_tokens: 16,
        temperature: 0,
      }),
    });
    expect(response.status).toBe(200);
    const answer = (await response.json()) as { choices: { text: string }[]; usage: { completion_tokens: number } };
    expect(answer.choices[0]?.text.length).toBeGreaterThan(0);
    expect(answer.usage.completion_tokens).toBeLessThanOrEqual(16);
  });

  it.each([[[]], [["--streaming"]]])("gives the client every golden completion %j, all at once", async (more) => {
    const prompts = golden.prompts.filter(({ kind }) => kind === "completion");
    const answers = await client(
      prompts.map(({ text }) => text),
      ...more,
    );
    expect(answers).toEqual(prompts.map(({ output_text }) => output_text));
  });

  it.each([[[]], [["--streaming"]]])("gives the client the chat answers of one worker alone %j", async (more) => {
    const prompts = ["My name is Ada and I live in Oslo. Where do I live?", "What is 8 + 9?", "Spell the word rabbit."];
    const answers = await client(prompts, "-e", "chat", ...more);
    const single = await Promise.all(
      prompts.map((content) =>
        ask({
          server: alone.url,
          endpoint: "chat",
          body: {
            model: "tiny",
            messages: [
              { role: "system", content: "You are a helpful assistant." },
              { role: "user", content },
            ],
            max_tokens: 48,
            temperature: 0,
          },
        }),
      ),
    );
    expect(answers).toEqual(single.map(({ text }) => text));
    expect(answers[0]).toBe("You live in Oslo.");
  });

  it("moves the cache of each of these requests, and nothing stays behind", async () => {
    const peers = (await (await fetch(`${generation.url}/kv/peers`)).json()) as {
      bytes_received: number;
      receives: { completed: number; failed: number; open: number };
      blocks: { pinned: number; quarantined: number };
    };
    expect(peers.bytes_received).toBeGreaterThan(0);
    expect(peers.receives).toMatchObject({ failed: 0, open: 0 });
    expect(peers.receives.completed).toBeGreaterThanOrEqual(10);
    expect(peers.blocks).toMatchObject({ pinned: 0, quarantined: 0 });
  });
});
