import { spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Beyond the door: whoever comes through the socket of the file system, which network namespaces share, is led to the port. */
const INNER = `
const { connect, createServer } = require("node:net");
const [socket, port] = process.argv.slice(1);
const server = createServer({ allowHalfOpen: true }, (near) => {
  const far = connect({ port: Number(port), host: "localhost", allowHalfOpen: true });
  for (const [from, to] of [[near, far], [far, near]]) {
    from.on("error", () => to.destroy()).on("close", () => to.destroy()).pipe(to);
  }
});
server.listen(socket, () => process.stdout.write("open"));
process.stdin.on("end", () => process.exit()).resume();
`;

/** A port of this process's network namespace that leads to one of another namespace. */
export interface Doorway extends AsyncDisposable {
  readonly port: number;
}

/**
 * @param entry a command line that starts a process there
 * @param socket a path that nobody uses
 */
export async function openDoorway(entry: readonly string[], port: number, socket: string): Promise<Doorway> {
  const [program = "", ...args] = [...entry, process.execPath, "-e", INNER, socket, String(port)];
  const inner = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
  await once(inner.stdout, "data");
  const open = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (near) => {
    const far = connect({ path: socket, allowHalfOpen: true });
    const ways = [
      [near, far],
      [far, near],
    ] as const;
    for (const [from, to] of ways) {
      open.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        open.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  server.listen(0, "localhost");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      server.close();
      for (const socketOf of open) socketOf.destroy();
      inner.stdin.end();
      await once(inner, "close");
    },
  };
}
