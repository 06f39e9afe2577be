import { describe, expect, it } from "vitest";
import { type FlagTable, parseArguments } from "../../../src/cli/arguments.ts";
import { isKvError } from "../../../src/errors.ts";

const table = {
  config_file: { kind: "string", short: "c", aliases: ["config"], help: "" },
  port: { kind: "integer", min: 1, max: 65535, help: "" },
  temperature: { kind: "number", short: "t", help: "" },
  streaming: { kind: "boolean", help: "" },
  role: { kind: "choice", choices: { CONTEXT: "CONTEXT", warning: "warn" }, help: "" },
} as const satisfies FlagTable;

const parse = (...argv: string[]) => parseArguments("test", table, argv);

function wrong(...argv: string[]): string {
  try {
    parse(...argv);
  } catch (thrown) {
    if (isKvError(thrown, "USAGE")) return thrown.message;
    throw thrown;
  }
  throw new Error("accepted");
}

describe("flags", () => {
  it.each([
    ["--config_file", "f"],
    ["--config-file", "f"],
    ["--config_file=f"],
    ["--config-file=f"],
    ["--config", "f"],
    ["--CONFIG-file", "f"],
    ["-c", "f"],
    ["-cf"],
    ["-c=f"],
  ])("are read in every spelling: %s %s", (...argv) => {
    expect(parse(...argv).flags.config_file?.value).toBe("f");
  });

  it("keep the spelling of the user as their origin", () => {
    expect(parse("--config-file=f").flags.config_file?.origin).toBe("--config-file");
    expect(parse("-c", "f").flags.config_file?.origin).toBe("-c");
  });

  it("give numbers, booleans and choices their type", () => {
    const { flags, positionals } = parse(
      "model",
      "--port",
      "80",
      "--temperature",
      "-0.5",
      "--streaming",
      "--role=WARNING",
    );
    expect(positionals).toEqual(["model"]);
    expect(flags).toMatchObject({
      port: { value: 80 },
      temperature: { value: -0.5 },
      streaming: { value: true },
      role: { value: "warn" },
    });
    expect(parse("--streaming=false").flags.streaming?.value).toBe(false);
  });

  it("a boolean takes no word that follows it, and -- ends the flags", () => {
    expect(parse("--streaming", "x").positionals).toEqual(["x"]);
    expect(parse("--", "--port", "-x").positionals).toEqual(["--port", "-x"]);
  });

  it.each([
    [["--prot", "80"], "there is no --prot; did you mean --port?"],
    [["--zzzzzz"], "there is no --zzzzzz"],
    [["-x"], "there is no -x; short flags are -c, -t"],
    [["--port"], "--port needs a value: --port N"],
    [["--port", "--streaming"], "--port needs a value"],
    [["--port", "abc"], '--port: "abc" is no number'],
    [["--port", "80.5"], "--port: 80.5 is no integer"],
    [["--port", "0"], "--port: 0 is below 1"],
    [["--port=65536"], "--port: 65536 is above 65535"],
    [["--port", ""], '--port: "" is no number'],
    [["--port", "1", "--port", "2"], "--port is given twice"],
    [["-c", ""], "-c: the value is empty"],
    [["--streaming=perhaps"], "neither true nor false"],
    [["--role", "CONTEXTT"], "CONTEXTT is not one of CONTEXT, warning (did you mean CONTEXT?)"],
  ])("%j is refused", (argv, words) => {
    expect(wrong(...argv)).toContain(words);
  });

  it("several mistakes are reported together", () => {
    expect(wrong("--prot", "1", "--role", "x", "-z").split("\n")).toHaveLength(3);
  });

  it("--help wins over mistakes", () => {
    expect(parse("--prot", "--help").help).toBe(true);
    expect(parse("-h").help).toBe(true);
  });
});
