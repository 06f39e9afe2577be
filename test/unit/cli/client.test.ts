import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { main } from "../../../src/cli/main.ts";
import { capturedTerminal } from "./captured_terminal.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-client-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let server: Server | undefined;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
  server = undefined;
});

type Handler = (body: Record<string, unknown>, path: string) => { status?: number; text: string; stream?: boolean };

/** A router file for a server in this process that answers as `handler` says. */
async function routerFile(handler: Handler): Promise<string> {
  const listener: RequestListener = (request, response) => {
    let text = "";
    request.on("data", (chunk: Buffer) => {
      text += chunk.toString();
    });
    request.on("end", () => {
      if (request.url === "/health") {
        response.end("{}");
        return;
      }
      const answer = handler(JSON.parse(text) as Record<string, unknown>, request.url ?? "");
      const type = answer.stream ? "text/event-stream" : "application/json";
      response.writeHead(answer.status ?? 200, { "content-type": type, "x-request-id": "r1" });
      response.end(answer.text);
    });
  };
  const started = createServer(listener);
  server = started;
  await new Promise<void>((resolve) => started.listen(0, "localhost", resolve));
  const address = started.address();
  const port = typeof address === "object" && address ? address.port : 0;
  const path = join(folder, `${port}.yaml`);
  writeFileSync(path, `port: ${port}\nmodel: some-model\ncontext_servers: {urls: ["a:1"]}\n`);
  return path;
}

const client = (config: string, prompts: unknown, ...more: string[]) =>
  clientOn(capturedTerminal(), config, prompts, ...more);

async function clientOn(
  terminal: ReturnType<typeof capturedTerminal>,
  config: string,
  prompts: unknown,
  ...more: string[]
) {
  const promptsFile = join(folder, "prompts.json");
  const output = join(folder, "answers.json");
  rmSync(output, { force: true });
  writeFileSync(promptsFile, JSON.stringify(prompts));
  const code = await main(["client", "-c", config, "-p", promptsFile, "-o", output, ...more], terminal);
  const answers = (): unknown => JSON.parse(readFileSync(output, "utf8"));
  return { code, err: terminal.err(), out: terminal.out(), answers };
}

const completion = (text: string) => JSON.stringify({ choices: [{ text, finish_reason: "stop" }] });
const chunk = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;

describe("kvt client", () => {
  it("sends what the seed's client sends, and writes the texts in the order of the prompts", async () => {
    const bodies: Record<string, unknown>[] = [];
    const config = await routerFile((body, path) => {
      bodies.push({ path, ...body });
      return { text: completion(`<${String(body.prompt)}>`) };
    });
    const { code, answers, err } = await client(config, ["a", "b", "c"], "--max-tokens", "7", "--ignore-eos");
    expect([code, err]).toEqual([0, ""]);
    expect(answers()).toEqual(["<a>", "<b>", "<c>"]);
    expect(bodies.find(({ prompt }) => prompt === "b")).toEqual({
      path: "/v1/completions",
      model: "some-model",
      prompt: "b",
      max_tokens: 7,
      temperature: 0,
      ignore_eos: true,
    });
  });

  it("draws a bar that counts the answers where a person looks at it", async () => {
    const config = await routerFile(() => ({ text: completion("x") }));
    const { code, err } = await clientOn(capturedTerminal({}, { isTTY: true }), config, ["a", "b", "c"]);
    expect(code).toBe(0);
    expect(err).toContain("0/3 answers");
    expect(err).toContain("3/3 answers");
  });

  it("puts a prompt into a user's message at the chat endpoint", async () => {
    const config = await routerFile((body, path) => ({
      text: JSON.stringify({ choices: [{ message: { content: `${path} ${JSON.stringify(body.messages)}` } }] }),
    }));
    const { answers } = await client(config, ["hello"], "-e", "chat");
    expect(answers()).toEqual([
      '/v1/chat/completions [{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"hello"}]',
    ]);
  });

  it("joins the pieces of a stream, completions and chat", async () => {
    const config = await routerFile((body) => ({
      stream: true,
      text: body.messages
        ? `${chunk({ choices: [{ delta: { role: "assistant" } }] })}${chunk({ choices: [{ delta: { content: "x" } }] })}data: [DONE]\n\n`
        : `${chunk({ choices: [{ text: "é" }] })}: comment\n\n${chunk({ choices: [{ text: "!" }] })}${chunk({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 2 } })}data: [DONE]\n\n`,
    }));
    expect((await client(config, ["p"], "--streaming")).answers()).toEqual(["é!"]);
    expect((await client(config, ["p"], "--streaming", "-e", "chat")).answers()).toEqual(["x"]);
  });

  it.each([
    ["a status that is not 200", { status: 503, text: '{"error":{"message":"not ready"}}' }, "status 503: not ready"],
    ["an answer without choices", { text: "{}" }, "an answer without choices"],
    ["an answer that is no JSON", { text: "<html>" }, "no JSON"],
    ["a stream that ends early", { stream: true, text: chunk({ choices: [{ text: "x" }] }) }, "before data: [DONE]"],
    ["an error inside a stream", { stream: true, text: chunk({ error: { message: "worker lost" } }) }, "worker lost"],
  ])("%s is a failure: exit code 1, and nothing is written", async (_what, answer, words) => {
    const config = await routerFile((body) => (body.prompt === "good" ? { text: completion("fine") } : answer));
    const streaming = "stream" in answer ? ["--streaming"] : [];
    const prompts = streaming.length > 0 ? ["bad"] : ["good", "bad"];
    const { code, err, answers } = await client(config, prompts, ...streaming);
    expect(code).toBe(1);
    expect(err).toContain(words);
    expect(err).toContain(`1 of ${prompts.length} prompts failed`);
    expect(answers).toThrow();
  });

  it("says that nobody listens, and waits only when told to", async () => {
    const config = join(folder, "nobody.yaml");
    writeFileSync(config, "port: 1\n");
    const refused = await client(config, ["p"]);
    expect([refused.code, refused.err.includes("nothing listens there")]).toEqual([1, true]);
    const waited = await client(config, ["p"], "--server-start-timeout", "0.05");
    expect(waited.code).toBe(3);
    const ready = await routerFile(() => ({ text: completion("up") }));
    expect((await client(ready, ["p"], "--server-start-timeout", "5")).code).toBe(0);
  });

  it.each([[[]], [{}], [[1]], ["text"]])("refuses the prompts file %j", async (prompts) => {
    const config = await routerFile(() => ({ text: completion("") }));
    const { code, err } = await client(config, prompts);
    expect(code).toBe(2);
    expect(err).toContain("JSON list of strings");
  });
});
