import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

const folder = mkdtempSync(join(tmpdir(), "kvt-config-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let count = 0;

/** Puts `text` into a new file and returns its path. */
export function written(text: string | Uint8Array, name = "file.yaml"): string {
  const path = join(folder, `${count++}-${name}`);
  writeFileSync(path, text);
  return path;
}

export const seed = (name: string): string => new URL(`../../fixtures/seed/${name}`, import.meta.url).pathname;
export const example = (name: string): string => new URL(`../../../examples/basic/${name}`, import.meta.url).pathname;
