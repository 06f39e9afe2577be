import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { userInfo } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { promisify } from "node:util";

export type NixlEnv = Readonly<Record<string, string | undefined>>;

/** One place where a libnixl_capi.so may lie. */
export interface NixlPlace {
  /** Absolute path; it need not exist. */
  readonly file: string;
  /** `KVT_NIXL_LIBRARY`, `kvt nixl install`, `Python`, `NIXL_PREFIX`, `/opt/nvidia/nvda_nixl` or `the loader's own path`. */
  readonly origin: string;
}

/** What the search asks of the machine; tests give their own. */
export interface NixlHost {
  readonly dataDirectory: string;
  /** Of the python3 on PATH: site-packages folders. */
  pythonSites(): Promise<readonly string[]>;
  /** Files that `ldconfig -p` names. */
  loaderCache(): Promise<readonly string[]>;
  /** CUDA major of the driver, undefined without one. */
  readonly cudaMajor: number | undefined;
}

const libraryNames = ["libnixl_capi.so", "libnixl_capi.so.0"];
const libraryFolders = ["lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"];
const run = promisify(execFile);
const ASK_LIMIT_MS = 10_000;
/** First driver whose libcuda speaks CUDA 13. */
const CUDA_13_DRIVER = 580;

/** Where `kvt nixl install` puts what it brings: below XDG_DATA_HOME, else ~/.local/share. Neither a relative nor an empty one counts. */
export function nixlDataDirectory(env: NixlEnv): string {
  const { XDG_DATA_HOME: data, HOME: home } = env;
  const base = data?.startsWith("/") ? data : join(home?.startsWith("/") ? home : userInfo().homedir, ".local/share");
  return join(base, "kv-transceiver/nixl");
}

export const systemHost = (env: NixlEnv): NixlHost => ({
  dataDirectory: nixlDataDirectory(env),
  pythonSites: () => pythonSites(env),
  loaderCache,
  cudaMajor: driverCudaMajor(),
});

/** All places in the order of preference, each once; a place that the user names is the only one (spec nixl.md section 2.1). */
export async function nixlPlaces(env: NixlEnv, host: NixlHost = systemHost(env)): Promise<readonly NixlPlace[]> {
  const { KVT_NIXL_LIBRARY: named } = env;
  if (named !== undefined && named !== "") return namedPlaces(named);
  const places: NixlPlace[] = [];
  const folder = (origin: string, path: string) => {
    for (const name of libraryNames) places.push({ origin, file: join(path, name) });
  };
  for (const home of installedHomes(host.dataDirectory)) {
    for (const path of wheelFolders(home, host.cudaMajor)) folder("kvt nixl install", path);
  }
  for (const site of [...environmentSites(env), ...(await host.pythonSites())]) {
    for (const path of wheelFolders(site, host.cudaMajor)) folder("Python", path);
  }
  const { NIXL_PREFIX: prefix } = env;
  if (prefix?.startsWith("/")) for (const path of libraryFolders) folder("NIXL_PREFIX", join(prefix, path));
  for (const path of libraryFolders) folder("/opt/nvidia/nvda_nixl", join("/opt/nvidia/nvda_nixl", path));
  const { LD_LIBRARY_PATH: loaderPath = "" } = env;
  for (const path of loaderPath.split(":").filter(isAbsolute)) folder("the loader's own path", path);
  for (const file of await host.loaderCache()) places.push({ origin: "the loader's own path", file });
  return [...new Map(places.map((place) => [place.file, place])).values()];
}

function namedPlaces(named: string): readonly NixlPlace[] {
  const origin = "KVT_NIXL_LIBRARY";
  const path = resolve(named);
  if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) return [{ origin, file: path }];
  return libraryNames.map((name) => ({ origin, file: join(path, name) }));
}

/** Folders of installed versions: the one that was installed last is the one that is wanted. */
export function installedHomes(directory: string): readonly string[] {
  const homes = listed(directory).filter((name) => /^\d/.test(name));
  return homes
    .map((name) => join(directory, name))
    .map((home) => ({ home, at: statSync(home, { throwIfNoEntry: false })?.mtimeMs ?? 0 }))
    .sort((one, other) => other.at - one.at || other.home.localeCompare(one.home, "en", { numeric: true }))
    .map(({ home }) => home);
}

/** `.nixl_cu13.mesonpy.libs` and the like in a site-packages folder; which CUDA comes first is the driver's matter. */
export function wheelFolders(site: string, cudaMajor: number | undefined): readonly string[] {
  const [first, second] = cudaMajor === 12 ? ["cu12", "cu13"] : ["cu13", "cu12"];
  return [`.nixl_${first}.mesonpy.libs`, `.nixl_${second}.mesonpy.libs`, ".nixl.mesonpy.libs"]
    .map((name) => join(site, name))
    .filter((path) => existsSync(path));
}

function environmentSites(env: NixlEnv): readonly string[] {
  const prefixes = [env.VIRTUAL_ENV, env.CONDA_PREFIX].filter((path) => path?.startsWith("/"));
  return prefixes.flatMap((prefix) =>
    ["lib", "lib64"].flatMap((name) => {
      const path = join(prefix ?? "", name);
      return listed(path)
        .filter((python) => python.startsWith("python3"))
        .map((python) => join(path, python, "site-packages"));
    }),
  );
}

function listed(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

const PYTHON_SOURCE =
  "import json, site, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), site.getusersitepackages()]))";

async function pythonSites(env: NixlEnv): Promise<readonly string[]> {
  try {
    const { stdout } = await run("python3", ["-c", PYTHON_SOURCE], {
      timeout: ASK_LIMIT_MS,
      env: { ...env, PYTHONSAFEPATH: "1" },
    });
    const sites: unknown = JSON.parse(stdout);
    return Array.isArray(sites) ? [...new Set(sites.filter((site) => typeof site === "string"))] : [];
  } catch {
    return []; // no Python: nothing was installed with pip
  }
}

async function loaderCache(): Promise<readonly string[]> {
  for (const ldconfig of ["/sbin/ldconfig", "/usr/sbin/ldconfig"]) {
    if (!existsSync(ldconfig)) continue;
    try {
      const { stdout } = await run(ldconfig, ["-p"], { timeout: ASK_LIMIT_MS, maxBuffer: 16 << 20 });
      return [...stdout.matchAll(/^\s*libnixl_capi\.so\S* .*=> (\/\S+)$/gm)].map(([, file = ""]) => file);
    } catch {
      return [];
    }
  }
  return [];
}

/** From the kernel module's version, which is there without any CUDA library. */
function driverCudaMajor(): number | undefined {
  try {
    const version = readFileSync("/proc/driver/nvidia/version", "utf8").match(/Kernel Module[^\d]*(\d+)\./);
    return version === null ? undefined : Number(version[1]) >= CUDA_13_DRIVER ? 13 : 12;
  } catch {
    return undefined;
  }
}
