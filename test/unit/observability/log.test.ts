import { describe, expect, it } from "vitest";
import { createLogger, readableLine } from "../../../src/observability/log.ts";

const capture = () => {
  const lines: string[] = [];
  return { lines, stream: { write: (line: string) => void lines.push(line) } };
};

describe("log", () => {
  it("writes one JSON object a line, with the fields of the child and of the call", () => {
    const { lines, stream } = capture();
    const log = createLogger({ name: "router", level: "info", stream });
    log.child({ requestId: "r-1" }).info({ worker: "http://localhost:8001" }, "context hop done");
    log.debug("below the level");
    expect(lines).toHaveLength(1);
    expect(JSON.parse(lines[0] ?? "")).toMatchObject({
      level: "info",
      name: "router",
      requestId: "r-1",
      worker: "http://localhost:8001",
      msg: "context hop done",
    });
  });

  it("takes its level from KVT_LOG_LEVEL unless one is given, and info when the variable is nonsense", () => {
    const before = process.env.KVT_LOG_LEVEL;
    try {
      process.env.KVT_LOG_LEVEL = "WARN";
      expect(createLogger({ name: "a", stream: capture().stream }).level).toBe("warn");
      expect(createLogger({ name: "a", level: "debug", stream: capture().stream }).level).toBe("debug");
      process.env.KVT_LOG_LEVEL = "loud";
      expect(createLogger({ name: "a", stream: capture().stream }).level).toBe("info");
    } finally {
      if (before === undefined) delete process.env.KVT_LOG_LEVEL;
      else process.env.KVT_LOG_LEVEL = before;
    }
  });

  it("reads as one line for a person: time, level, speaker, sentence, fields", () => {
    const { lines, stream } = capture();
    createLogger({ name: "worker", level: "info", stream }).info({ tokens: 700, path: "a b" }, "received KV");
    expect(readableLine(lines[0] ?? "")).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} INFO {2}worker: received KV tokens=700 path="a b"\n$/,
    );
  });

  it("shows an error's stack after the line", () => {
    const { lines, stream } = capture();
    createLogger({ name: "worker", level: "info", stream }).error({ err: new Error("broken") }, "failed");
    expect(readableLine(lines[0] ?? "")).toMatch(/worker: failed\nError: broken\n\s+at /);
  });
});
