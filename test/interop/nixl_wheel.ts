import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export interface NixlCase {
  readonly name: string;
  /** Of both sides. */
  readonly env: Readonly<Record<string, string>>;
  /** Why it can't be tested here. */
  readonly missing?: string;
}

const script = fileURLToPath(new URL("../../scripts/nixl.mjs", import.meta.url));

/** A NIXL that scripts/nixl.mjs brings from PyPI, once, into .cache; or one sentence about why there is none (offline, no pip). */
export function bringNixl(version: string): { readonly library: string } | { readonly missing: string } {
  const child = spawnSync(process.execPath, [script, "--bring", version], { encoding: "utf8", timeout: 300_000 });
  const said = child.stdout.trim().split("\n").at(-1) ?? "";
  return child.status === 0 ? { library: said } : { missing: said };
}

/** The variables with which plug-in LIBFABRIC works over tcp on a machine without a GPU, or one sentence about why it can't. */
export function libfabricEnvironment(version: string): {
  readonly env: Readonly<Record<string, string>>;
  readonly missing?: string;
} {
  const child = spawnSync(process.execPath, [script, "--bring-libfabric", version], {
    encoding: "utf8",
    timeout: 300_000,
  });
  const said = child.stdout.trim().split("\n").at(-1) ?? "";
  if (child.status !== 0) return { env: {}, missing: said };
  const { library, path } = JSON.parse(said) as { library: string; path: string };
  const fabric = { TRTLLM_NIXL_KVCACHE_BACKEND: "LIBFABRIC", FI_PROVIDER: "tcp", LD_LIBRARY_PATH: path };
  return { env: { KVT_NIXL_LIBRARY: library, ...fabric } };
}

/** Both paths over each transport that a machine without a special network has. */
export function nixlCases(): readonly NixlCase[] {
  const ucx = bringNixl("1.5.1");
  const missing = "library" in ucx ? {} : { missing: ucx.missing };
  const library = "library" in ucx ? { KVT_NIXL_LIBRARY: ucx.library } : {};
  const overUcx = ["nixl_direct", "nixl_staged"].flatMap((path) => [
    { name: `${path} over UCX's shared memory`, env: { ...library, KVT_PATH: path }, ...missing },
    { name: `${path} over UCX's TCP`, env: { ...library, KVT_PATH: path, UCX_TLS: "tcp" }, ...missing },
  ]);
  const fabric = libfabricEnvironment("1.4.1");
  const staged = {
    name: "nixl_staged over LIBFABRIC's tcp",
    ...fabric,
    env: { ...fabric.env, KVT_PATH: "nixl_staged" },
  };
  return [...overUcx, staged];
}

/** Peers take the environment of this process. */
export function setEnvironment(values: Readonly<Record<string, string>>): () => void {
  const before = Object.keys(values).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, values);
  return () => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  };
}
