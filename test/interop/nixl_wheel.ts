import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("../../scripts/nixl.mjs", import.meta.url));

/** A NIXL that scripts/nixl.mjs brings from PyPI, once, into .cache; or one sentence about why there is none (offline, no pip). */
export function bringNixl(version: string): { readonly library: string } | { readonly missing: string } {
  const child = spawnSync(process.execPath, [script, "--bring", version], { encoding: "utf8", timeout: 300_000 });
  const said = child.stdout.trim().split("\n").at(-1) ?? "";
  return child.status === 0 ? { library: said } : { missing: said };
}
