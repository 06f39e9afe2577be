import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { KvError } from "../errors.ts";

const listen = (port: number): Promise<Server> =>
  new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(new KvError("BIND_FAILED", { host: "localhost", port, why: error.code ?? error.message })),
    );
    server.listen(port, "localhost", () => resolve(server));
  });

/**
 * Says to every other caller of `freePorts` on this host that the port is given away, for as long as this process lives: the one that will
 * bind it is still starting then. An abstract socket belongs to the same network namespace as the port, and leaves no file behind.
 * @returns false when another caller, of this process or another, has it
 */
function claim(port: number): Promise<boolean> {
  const mark = createServer((connection) => connection.destroy()).unref();
  return new Promise((resolve) => {
    mark.once("error", () => resolve(false));
    mark.listen(`\0kvt-port-${port}`, () => resolve(true));
  });
}

const close = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()));

const portOf = (server: Server): number => {
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
};

/** Below these begin the ports that the system hands out by itself, to any connection of any process. */
function firstEphemeral(): number {
  try {
    return Number(readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split(/\s/)[0]);
  } catch {
    return 32_768; // Linux's default
  }
}

const LOWEST = 10_000;
const TRIES = 100;

/** A port that stays free until its process binds it: nobody gets it unless he asks for it by number. */
async function listenAnywhere(): Promise<Server> {
  const above = firstEphemeral();
  for (let tries = 0; above > LOWEST && tries < TRIES; tries++) {
    const port = randomInt(LOWEST, above);
    const server = await listen(port).catch(() => null);
    if (server === null) continue;
    if (await claim(port)) return server;
    await close(server);
  }
  return listen(0);
}

/**
 * `count` different ports of localhost that nobody listens on at the moment, that the system gives to nobody by itself, and that no other
 * call gets while this process lives.
 * @param wanted these very ports instead; KvError BIND_FAILED when one is taken
 */
export async function freePorts(count: number, wanted?: readonly number[]): Promise<number[]> {
  const servers: Server[] = [];
  try {
    // All are held at once, so that no port comes twice.
    for (let i = 0; i < count; i++) {
      const port = wanted?.[i];
      servers.push(await (port === undefined ? listenAnywhere() : listen(port)));
    }
    return servers.map(portOf);
  } finally {
    await Promise.all(servers.map(close));
  }
}
