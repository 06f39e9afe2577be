import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { z } from "zod";
import { KvtFile } from "../../../src/config/kvt_file.ts";
import { RouterFile } from "../../../src/config/router_file.ts";
import { knownKeys } from "../../../src/config/schema_check.ts";
import { CacheTransceiverSection, KvCacheSection, WorkerFile } from "../../../src/config/worker_file.ts";

const page = readFileSync(new URL("../../../docs/configuration.md", import.meta.url), "utf8");
const sectionOf = (title: string): string => page.split("\n## ").find((section) => section.startsWith(title)) ?? "";

describe("docs/configuration.md", () => {
  it.each([
    ["Worker", WorkerFile, [], ""],
    ["Worker", CacheTransceiverSection, [], "cache_transceiver_config."],
    ["Worker", KvCacheSection, [], "kv_cache_config."],
    ["Worker", WorkerFile, ["disagg_cluster"], ""],
    ["Ours", KvtFile, [], ""],
    ["Ours", KvtFile, ["lease"], "lease."],
    ["Ours", KvtFile, ["control"], "control."],
    ["Ours", KvtFile, ["transfer"], "transfer."],
  ] satisfies [string, z.ZodType, string[], string][])(
    "section %s names every key of its schema",
    (title, schema, path, prefix) => {
      const missing = knownKeys(schema, path).filter((key) => !sectionOf(title).includes(`${prefix}${key}`));
      expect(missing).toEqual([]);
    },
  );

  it("names every key that only a router has", () => {
    const own = knownKeys(RouterFile, []).filter((key) => !knownKeys(WorkerFile, []).includes(key));
    expect(own.filter((key) => !sectionOf("Router").includes(`\`${key}\``))).toEqual([]);
  });
});
