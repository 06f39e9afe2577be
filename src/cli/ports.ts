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

const close = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()));

const portOf = (server: Server): number => {
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
};

/**
 * `count` different ports of localhost that nobody listens on at the moment.
 * @param wanted these very ports instead; KvError BIND_FAILED when one is taken
 */
export async function freePorts(count: number, wanted?: readonly number[]): Promise<number[]> {
  const servers: Server[] = [];
  try {
    // All are held at once, so that no port comes twice.
    for (let i = 0; i < count; i++) servers.push(await listen(wanted?.[i] ?? 0));
    return servers.map(portOf);
  } finally {
    await Promise.all(servers.map(close));
  }
}
