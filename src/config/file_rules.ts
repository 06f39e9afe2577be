import { readFileSync } from "node:fs";
import type { Problems } from "./problems.ts";
import { eachScalar } from "./schema_check.ts";
import { Backend } from "./worker_file.ts";
import { dotted, isYamlMap, type Path, YamlSource } from "./yaml_source.ts";

/** Reads a file; one that can't be read is a problem like any other. */
export function readSource(file: string, problems: Problems): YamlSource | undefined {
  let bytes: Buffer;
  try {
    bytes = readFileSync(file);
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code ?? "unknown error";
    const why = code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "it is a directory" : code;
    problems.add("error", "", `${file} can't be read: ${why}`);
    return undefined;
  }
  return YamlSource.parse(file, bytes.toString("utf8").replace(/^\uFEFF/, ""), problems);
}

interface OldName {
  readonly section: Path;
  readonly old: string;
  readonly now: string;
}

// S7. `null` stands for every section: the seed spells these two wrongly in prose and example.
const oldNames: readonly OldName[] = [
  { section: ["disagg_cluster"], old: "inactive_interval_sec", now: "inactive_timeout_sec" },
  { section: [], old: "refersh_interval", now: "refresh_interval" },
  { section: ["cache_transceiver_config"], old: "max_num_tokens", now: "max_tokens_in_buffer" },
];

// Sections that hold worker sections of their own (S38).
const holders: readonly Path[] = [[], ["context_servers"], ["generation_servers"]];

/** Known misspellings and older names get their canonical name, with one warning each (S7). */
export function renameOldNames(source: YamlSource, problems: Problems): void {
  for (const holder of holders) {
    for (const { section, old, now } of oldNames) rename(source, [...holder, ...section], old, now, problems);
    upperCaseBackend(source, [...holder, "cache_transceiver_config", "backend"], problems);
  }
}

function rename(source: YamlSource, section: Path, old: string, now: string, problems: Problems): void {
  const value = source.get([...section, old]);
  if (value === undefined) return;
  const place = source.placeOfKey([...section, old]);
  const key = dotted([...section, old]);
  const other = source.get([...section, now]);
  if (other === undefined) {
    problems.add("warning", key, `is an old name: write ${now}`, place);
    source.rename(section, old, now);
    return;
  }
  source.remove([...section, old]);
  if (other === value) problems.add("warning", key, `is an old name of ${now}, which is given too: remove it`, place);
  else problems.add("error", key, `is an old name of ${now}, and the two have different values: keep one`, place);
}

function upperCaseBackend(source: YamlSource, path: Path, problems: Problems): void {
  const value = source.get(path);
  if (typeof value !== "string" || value === value.toUpperCase()) return;
  const upper = value.toUpperCase();
  if (!Backend.safeParse(upper).success) return;
  source.set(path, upper);
  problems.add("warning", dotted(path), `backend names are upper case: write ${upper}`, source.placeOfValue(path));
}

const LONGEST_SECONDS = 86_400;
const LONGEST_MS = LONGEST_SECONDS * 1000;

/** Values that look like milliseconds given as seconds, or the other way round (S9). */
export function warnAboutUnits(source: YamlSource, problems: Problems): void {
  eachScalar(source.root, (path, value) => {
    const name = path.at(-1);
    if (typeof name !== "string" || typeof value !== "number") return;
    const text = unitMistake(name, value);
    if (text) problems.add("warning", dotted(path), text, source.placeOfValue(path));
  });
}

/** What is odd about a duration under this name, or undefined. */
export function unitMistake(name: string, value: number): string | undefined {
  if (/(_ms|[a-z]Ms)$/.test(name)) {
    if (value > 0 && value < 10) return `${value} ms is very short: is it meant in seconds? Write ${value * 1000}`;
    if (value > LONGEST_MS) return `${value} ms is more than a day: is it meant in another unit?`;
  }
  if (name.endsWith("_sec") && value > LONGEST_SECONDS) {
    return `${value} s is more than a day: is it meant in milliseconds? Write ${value / 1000}`;
  }
  return undefined;
}

/** Takes the keys of `section` out of the tree that `foreign` names, and returns them. */
export function takeForeign(source: YamlSource, section: Path, foreign: ReadonlySet<string>): Path[] {
  const map = source.get(section);
  if (!isYamlMap(map)) return [];
  const taken: Path[] = [];
  for (const key of Object.keys(map)) {
    if (!foreign.has(key)) continue;
    taken.push([...section, key]);
    source.remove([...section, key]);
  }
  return taken;
}
