import { readFileSync } from "node:fs";

let version: string | undefined;

/** The version in this package's package.json, which lies one folder above both src/ and dist/. */
export function packageVersion(): string {
  if (version === undefined) {
    const text = readFileSync(new URL("../package.json", import.meta.url), "utf8");
    version = String((JSON.parse(text) as { version?: unknown }).version ?? "unknown");
  }
  return version;
}
