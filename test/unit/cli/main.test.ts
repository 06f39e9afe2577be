import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { main } from "../../../src/cli/main.ts";
import { packageVersion } from "../../../src/version.ts";
import { capturedTerminal } from "./captured_terminal.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function kvt(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const terminal = capturedTerminal();
  const code = await main(argv, terminal);
  return { code, out: terminal.out(), err: terminal.err() };
}

const file = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};

const example = (name: string): string => new URL(`../../../examples/basic/${name}`, import.meta.url).pathname;

describe("kvt", () => {
  it("without arguments lists its commands on standard error and exits with 2, with --help on standard output with 0", async () => {
    const bare = await kvt();
    expect([bare.code, bare.out]).toEqual([2, ""]);
    for (const help of [["--help"], ["-h"], ["help"]]) {
      const { code, out } = await kvt(...help);
      expect([code, out]).toEqual([0, bare.err]);
      for (const name of ["serve", "disaggregated", "demo", "client", "config"]) expect(out).toContain(`\n  ${name} `);
    }
  });

  it("--version prints the version of package.json", async () => {
    expect(await kvt("--version")).toEqual({ code: 0, out: `${packageVersion()}\n`, err: "" });
  });

  it.each(["serve", "disaggregated", "demo", "client", "config", "doctor", "nixl"])(
    "%s --help explains usage, flags and an example",
    async (name) => {
      const { code, out, err } = await kvt(name, "--help");
      expect([code, err]).toEqual([0, ""]);
      expect(out).toMatch(new RegExp(`^Usage: kvt ${name}`));
      expect(out).toContain("Flags");
      expect(out).toMatch(/Examples:\n {2}(\S+=\S+ )?kvt /);
      for (const line of out.split("\n")) expect(line.length).toBeLessThanOrEqual(130);
      expect((await kvt("help", name)).out).toBe(out);
    },
  );

  it.each([
    ["disagregated", "did you mean kvt disaggregated?"],
    ["sevre", "did you mean kvt serve?"],
    ["docter", "did you mean kvt doctor?"],
  ])("%s is no command: %s", async (word, words) => {
    const { code, err } = await kvt(word);
    expect(code).toBe(2);
    expect(err).toContain(words);
  });

  it.each(["disaggregated_mpi_worker", "launch", "drain", "mm_embedding_serve", "grpc"])(
    "%s is recognised: one sentence, exit code 2",
    async (word) => {
      const { code, err } = await kvt(word, "anything", "--flag");
      expect(code).toBe(2);
      expect(err).toMatch(new RegExp(`^kvt: kvt ${word}: .*(not built yet|not provided)`));
    },
  );

  it.each([
    [["client"], "--disagg_config_file (-c) and --prompts_file (-p) must be given"],
    [["client", "-c", "x"], "--prompts_file (-p) must be given"],
    [["client", "-c", "x", "-p", "/nowhere"], "/nowhere can't be read"],
    [["disaggregated"], "--config_file (-c) must be given"],
    [["disaggregated", "-c", "/nowhere.yaml"], "there is no such file"],
    [["serve"], "MODEL is missing"],
    [["serve", "/no/model.gguf"], "there is no file /no/model.gguf"],
    [["/no/model.gguf"], "there is no file /no/model.gguf"],
    [["serve", "a.gguf", "b.gguf"], "b.gguf is not expected here"],
    [["TinyLlama/TinyLlama-1.1B-Chat-v1.0"], "names of a model hub are not looked up"],
    [["serve", "x", "--prot", "1"], "did you mean --port?"],
    [["serve", "x", "--port", "0"], "works only with service discovery"],
    [["demo", "x"], "x is not expected here"],
    [["demo", "--device", "cuda"], "not built yet"],
    [["config", "show", "x"], "kvt config print FILE"],
  ])("%j is a usage error", async (argv, words) => {
    const { code, out, err } = await kvt(...argv);
    expect([code, out]).toEqual([2, ""]);
    expect(err).toContain(words);
    expect(err).not.toContain("    at ");
  });
});

describe("kvt config", () => {
  it("check accepts the example files and says what kind they are", async () => {
    expect((await kvt("config", "check", example("ctx_config.yaml"))).out).toContain(
      "a worker starts with it (0 warnings)",
    );
    const router = await kvt("config", "check", example("disagg_config.yaml"));
    expect([router.code, router.err]).toEqual([0, ""]);
    expect(router.out).toContain("a router starts with it (0 warnings)");
  });

  it("check shows every problem with line and caret, and exits with 2", async () => {
    const path = file("bad.yaml", "cache_transceiver_config:\n  backend: UCCX\nmax_batch_size: '8'\n");
    const { code, out, err } = await kvt("config", "check", path);
    expect([code, out]).toEqual([2, ""]);
    expect(err).toContain(`${path}:2:12: error: cache_transceiver_config.backend: "UCCX" is not one of`);
    expect(err).toContain("  2 |   backend: UCCX\n    |            ^\n");
    expect(err).toContain(`${path}:3:17: error: max_batch_size: "8" is a string; write 8 without quotes`);
    expect(err).toContain("2 problems; a worker does not start with it");
  });

  it("print shows each effective value with its origin, as text and as JSON", async () => {
    const path = example("gen_config.yaml");
    const text = await kvt("config", "print", path);
    expect(text.out).toMatch(/^cache_transceiver_config\.backend = UCX +\(.*gen_config\.yaml:4\)$/m);
    expect(text.out).toMatch(/^port = 8000 +\(default\)$/m);
    const json = JSON.parse((await kvt("config", "print", path, "--json")).out) as {
      kind: string;
      effective: unknown[];
    };
    expect(json.kind).toBe("worker");
    expect(json.effective).toContainEqual({
      key: "cache_transceiver_config.max_tokens_in_buffer",
      value: 2048,
      origin: `${path}:5`,
    });
  });
});

describe("a start with a bad file", () => {
  it("fails before anything listens: all problems, exit code 2", async () => {
    const path = file("worker.yaml", "max_batch_size: 0\nbackned: pytorch\n");
    const { code, err } = await kvt("serve", "models/tiny.gguf", "--config", path);
    expect(code).toBe(2);
    expect(err).toContain("2 problem(s) in the configuration");
    expect(err).toContain("did you mean backend?");
  });
});
