import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { filesBelow, importsOf, repositoryRoot } from "./source_files.ts";

const leafFiles = ["errors", "ids", "clock", "version", "layout"];
const leafRooms = [...leafFiles, "openai", "config", "observability"];

/** Who may import whom: `cli → worker, router; worker → transceiver → kv → native; worker, router → cluster`, all → leaves. */
const mayImport: Readonly<Record<string, readonly string[]>> = {
  ...Object.fromEntries(leafRooms.map((room) => [room, leafFiles])),
  native: leafRooms,
  nixl: ["native", ...leafRooms],
  kv: ["native", ...leafRooms],
  transceiver: ["kv", "nixl", "native", ...leafRooms],
  cluster: leafRooms,
  worker: ["transceiver", "kv", "native", "cluster", ...leafRooms],
  router: ["cluster", ...leafRooms],
  doctor: ["transceiver", "nixl", "native", ...leafRooms],
  cli: ["worker", "router", "doctor", "nixl", ...leafRooms],
  index: ["transceiver", "kv", "worker", "router", "native", "openai", "errors", "ids", "clock", "layout"],
};

/** `dataplane → paths → {nixl, cuda, memory} → layout`, `engine → {memory, layout}`; the addon alone sees all of them. */
const mayInclude: Readonly<Record<string, readonly string[]>> = {
  layout: [],
  memory: ["layout"],
  nixl: ["memory", "layout"],
  cuda: ["memory", "layout"],
  paths: ["nixl", "cuda", "memory", "layout"],
  dataplane: ["paths", "nixl", "cuda", "memory", "layout"],
  engine: ["memory", "layout"],
  addon: ["dataplane", "engine", "paths", "nixl", "cuda", "memory", "layout"],
};

/** src/router/server.ts → router, src/errors.ts → errors. */
const roomOf = (file: string): string => (file.split("/")[1] ?? "").replace(/\.ts$/, "");

const files = filesBelow("src", ".ts");
const graph = new Map(files.map((file) => [file, importsOf(file)]));

/** Files that loading `start` may load; types are gone at run time. */
function reachable(starts: readonly string[]): Set<string> {
  const seen = new Set<string>();
  const open = [...starts];
  for (let file = open.pop(); file !== undefined; file = open.pop()) {
    if (seen.has(file)) continue;
    seen.add(file);
    for (const { target, typeOnly } of graph.get(file) ?? []) if (target && !typeOnly) open.push(target);
  }
  return seen;
}

describe("imports of src/", () => {
  it("name files that exist, so that no import escapes this test", () => {
    const unknown = [...graph].flatMap(([file, imports]) =>
      imports
        .filter(({ target }) => target !== undefined && !graph.has(target))
        .map(({ specifier }) => `${file} → ${specifier}`),
    );
    // The package's own package.json is read as data by version.ts and the like.
    expect(unknown.filter((line) => !line.endsWith("package.json"))).toEqual([]);
  });

  it("point one way between the rooms", () => {
    const wrong: string[] = [];
    for (const [file, imports] of graph) {
      const room = roomOf(file);
      const allowed = mayImport[room];
      if (allowed === undefined) wrong.push(`${file}: room ${room} has no rule in this test`);
      for (const { target } of imports) {
        if (target === undefined || !graph.has(target)) continue;
        const other = roomOf(target);
        if (other !== room && !allowed?.includes(other)) wrong.push(`${file} → ${target}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("form no cycle of modules", () => {
    const cycles: string[] = [];
    const state = new Map<string, "open" | "done">();
    const walk = (file: string, path: readonly string[]): void => {
      if (state.get(file) === "done") return;
      if (state.get(file) === "open") {
        cycles.push([...path.slice(path.indexOf(file)), file].join(" → "));
        return;
      }
      state.set(file, "open");
      for (const { target, typeOnly, thread } of graph.get(file) ?? []) {
        if (target && !typeOnly && !thread) walk(target, [...path, file]);
      }
      state.set(file, "done");
    };
    for (const file of graph.keys()) walk(file, []);
    expect(cycles).toEqual([]);
  });

  it("never lead from the router to the transceiver, the worker or the addon", () => {
    const routerFiles = files.filter((file) => roomOf(file) === "router");
    const forbidden = [...reachable(routerFiles)].filter((file) =>
      ["native", "kv", "transceiver", "worker"].includes(roomOf(file)),
    );
    expect(forbidden).toEqual([]);
  });
});

describe("includes of native/", () => {
  it("point one way between the rooms", () => {
    const sources = [...filesBelow("native", ".cc"), ...filesBelow("native", ".h")];
    const wrong: string[] = [];
    let crossings = 0;
    for (const file of sources) {
      const room = roomOf(file);
      if (room === "test" || room === "third_party") continue;
      const text = readFileSync(join(repositoryRoot, file), "utf8");
      for (const [, other = ""] of text.matchAll(/^#include "(\w+)\//gm)) {
        if (other === room) continue;
        crossings += 1;
        if (!mayInclude[room]?.includes(other)) wrong.push(`${file} → ${other}`);
      }
    }
    expect(wrong).toEqual([]);
    expect(crossings).toBeGreaterThan(20);
  });
});

describe("the reader of imports", () => {
  it("sees the imports of this very file and of the loader", () => {
    expect(importsOf("test/unit/repository/import_direction.test.ts").map(({ specifier }) => specifier)).toEqual([
      "node:fs",
      "node:path",
      "vitest",
      "./source_files.ts",
    ]);
    expect(importsOf("src/native/loader.ts").map(({ target }) => target)).toContain("src/errors.ts");
  });
});
