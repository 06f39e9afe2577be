import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import type { Epoch } from "../ids.ts";

/** Longest path of a unix socket on Linux, without its final zero. */
const SOCKET_PATH_LIMIT = 107;

/**
 * The 0700 directory that unix sockets of this user stand in: KVT_SOCKET_DIR, else below $XDG_RUNTIME_DIR, else a folder of this uid in the
 * temp directory. Whoever can reach a socket there is this user, so it counts as proven. The data plane makes and checks it.
 */
export function defaultSocketDir(environment: NodeJS.ProcessEnv = process.env): string {
  const { KVT_SOCKET_DIR: own, XDG_RUNTIME_DIR: runtime } = environment;
  if (own) return own;
  if (runtime?.startsWith("/")) return join(runtime, "kvt");
  return join(tmpdir(), `kvt-${userInfo().uid}`);
}

/** Names start as the data plane's do, so that it removes those of killed processes too; null: too long a path for a socket. */
export function controlSocketPath(directory: string, epoch: Epoch): string | null {
  const path = join(directory, `kvt-pool-${epoch}.ctl`);
  return Buffer.byteLength(`${path}.new`) <= SOCKET_PATH_LIMIT ? path : null;
}
