import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** Stands between a receiver and a sender's control port; cuts a connection in the place of the first frame that holds `word`. */
export class Wire {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  connections = 0;
  cutAt: string | null = null;

  constructor(target: string) {
    const { hostname, port } = new URL(target);
    this.#server = createServer((near) => {
      this.connections++;
      const far = connect(Number(port), hostname);
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#sockets.add(from);
        from.on("error", () => {});
        from.on("close", () => {
          this.#sockets.delete(from);
          to.destroy();
        });
        from.on("data", (bytes) => {
          if (this.cutAt !== null && bytes.includes(this.cutAt)) {
            this.cutAt = null;
            this.cut();
          } else {
            to.write(bytes);
          }
        });
      }
    });
  }

  async open(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `tcp://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.cut();
    this.#server.close();
  }
}
