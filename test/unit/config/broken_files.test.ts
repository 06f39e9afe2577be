import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { KvtFile } from "../../../src/config/kvt_file.ts";
import { isFatal, Problems, renderProblem } from "../../../src/config/problems.ts";
import { parseRouterFile, resolveRouter } from "../../../src/config/router_settings.ts";
import { checkSchema } from "../../../src/config/schema_check.ts";
import { parseWorkerFile, resolveWorker } from "../../../src/config/worker_settings.ts";
import { YamlSource } from "../../../src/config/yaml_source.ts";
import { seed, written } from "./written_file.ts";

const files = ["ctx_config.yaml", "disagg_config.yaml", "disagg_config_mpi.yaml"].map((name) =>
  readFileSync(seed(name), "utf8"),
);

/** Runs every reader over a text; none may throw, and each fatal problem must have a place in the file. */
function readAll(text: string): void {
  const readers = [
    parseWorkerFile,
    parseRouterFile,
    (source: YamlSource, problems: Problems) => checkSchema(KvtFile, source, problems),
  ];
  for (const reader of readers) {
    const problems = new Problems();
    const parsed = reader(YamlSource.parse("f.yaml", text, problems), problems);
    if (parsed === undefined) expect(problems.fatal.length).toBeGreaterThan(0);
    const lines = text.split(/\r\n|\n|\r/).length;
    for (const problem of problems.all.filter(isFatal)) {
      const where = problem.place;
      expect(where?.line).toBeGreaterThanOrEqual(1);
      expect(where?.line).toBeLessThanOrEqual(lines);
      expect(where?.column).toBeGreaterThanOrEqual(1);
      expect(renderProblem(problem)).toMatch(/^f\.yaml:\d+:\d+: error: /);
    }
  }
}

const pieces = fc.constantFrom(
  ...[
    "a",
    ":",
    ": ",
    "\n",
    "  ",
    "\t",
    "-",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&x ",
    "*x",
    "!!int ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "?",
  ],
  ...[
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "<<",
    "~",
    "null",
    "True",
    "1e9",
    "0x1F",
    ".inf",
    "\u0000",
    "\uFEFF",
    "\\u",
    "é",
    "😀",
  ],
  ...[
    "backend",
    "cache_transceiver_config:\n  ",
    "context_servers:\n  urls:\n    - ",
    "kv_cache_config",
    "router",
    "__proto__",
  ],
);

describe("broken files", () => {
  it("any text gives problems with a place, and never throws", () => {
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 40 }), (parts) => readAll(parts.join(""))),
      { numRuns: 600 },
    );
  });

  it("any cut, insertion or changed letter of the seed's files gives problems with a place, and never throws", () => {
    const change = fc.record({
      file: fc.constantFrom(...files),
      at: fc.nat(2_000),
      remove: fc.nat(20),
      insert: fc.oneof(pieces, fc.string({ maxLength: 3, unit: "binary" })),
    });
    fc.assert(
      fc.property(change, ({ file, at, remove, insert }) => {
        const start = at % file.length;
        readAll(file.slice(0, start) + insert + file.slice(start + remove));
      }),
      { numRuns: 300 },
    );
  });

  it("any JSON value in the place of any known key is accepted or refused at its place", () => {
    const keys = [
      "backend",
      "max_batch_size",
      "kv_cache_config",
      "cache_transceiver_config",
      "context_servers",
      "router",
    ];
    const value = fc.jsonValue({ maxDepth: 3 });
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...keys), value, { maxKeys: 4 }), (map) =>
        readAll(JSON.stringify(map)),
      ),
      { numRuns: 300 },
    );
  });

  it("random bytes as a file are refused, whole and through the resolvers", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), (bytes) => {
        const configFile = written(bytes);
        expect(() => resolveWorker({ model: "m", configFile })).not.toThrow();
        expect(() => resolveRouter({ configFile })).not.toThrow();
      }),
      { numRuns: 100 },
    );
  });
});
