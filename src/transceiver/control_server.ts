import { rename, unlink } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { createSecureContext, type SecureContext, TLSSocket } from "node:tls";
import { KvError } from "../errors.ts";
import { ServedConnection, type ServedContext } from "./served_connection.ts";

/** Connections that have shown no proof yet, over TCP. */
const UNPROVEN_LIMIT = 8;
const CONNECTIONS_LIMIT = 4096;

export interface ControlListen {
  readonly host: string;
  readonly port: number;
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
  /** Path of the unix socket beside it; null: none. */
  readonly unix: string | null;
}

/** Listens for receivers over TCP (or TLS) and a unix socket. None of its sockets keeps Node alive. */
export class ControlServer {
  readonly #context: ServedContext;
  readonly #servers: Server[] = [];
  readonly #connections = new Set<ServedConnection>();
  readonly #secure: SecureContext | undefined;
  readonly #unix: string | null;
  #tcp = "";
  #unproven = 0;

  private constructor(context: ServedContext, listen: ControlListen) {
    this.#context = context;
    this.#unix = listen.unix;
    this.#secure = listen.tls && secureContext(listen.tls);
  }

  /** @throws KvError BIND_FAILED, INVALID_ARGUMENT (a certificate or key that is none) */
  static async open(context: ServedContext, listen: ControlListen): Promise<ControlServer> {
    const server = new ControlServer(context, listen);
    try {
      await server.#listenTcp(listen);
      if (listen.unix !== null) await server.#listenUnix(listen.unix);
    } catch (error) {
      await server.close();
      throw error;
    }
    return server;
  }

  get endpoints(): { readonly tcp: string; readonly unix: string | null } {
    return { tcp: this.#tcp, unix: this.#unix };
  }

  /** Receivers connect anew, and are told how this side is reached now; their leases go on. */
  dropConnections(why: string): void {
    for (const connection of [...this.#connections]) connection.end(why);
  }

  /** Ends connections after what was written has gone out. */
  async close(): Promise<void> {
    for (const connection of [...this.#connections]) connection.end("this side closes");
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
    // libuv unlinks the name it has bound, not the one that it was renamed to.
    if (this.#unix !== null) await unlink(this.#unix).catch(() => {});
  }

  async #listenTcp(listen: ControlListen): Promise<void> {
    const server = createServer((socket) => this.#accept(socket, false));
    await bind(server, { host: listen.host, port: listen.port });
    this.#servers.push(server);
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : listen.port;
    const host = advertised(listen.host);
    this.#tcp = `${this.#secure ? "tls" : "tcp"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
  }

  async #listenUnix(path: string): Promise<void> {
    const server = createServer((socket) => this.#accept(socket, true));
    // It appears under its name only once it listens: a name that refuses connections belongs to nobody alive.
    await bind(server, { path: `${path}.new` });
    this.#servers.push(server);
    await rename(`${path}.new`, path);
  }

  #accept(raw: Socket, local: boolean): void {
    raw.on("error", () => raw.destroy());
    if (this.#connections.size >= CONNECTIONS_LIMIT || (!local && this.#unproven >= UNPROVEN_LIMIT)) {
      this.#context.countDropped("connection over the limit");
      raw.destroy();
      return;
    }
    if (!local) this.#unproven++;
    let counted = !local;
    const settle = (): void => {
      if (counted) this.#unproven--;
      counted = false;
    };
    // Writes wait inside the TLS socket until its own handshake is over; ours has the same second for both.
    const secure = this.#secure !== undefined && !local;
    const socket = secure ? new TLSSocket(raw, { isServer: true, secureContext: this.#secure }) : raw;
    const connection = new ServedConnection(this.#context, socket, local, {
      proven: settle,
      closed: () => {
        settle();
        this.#connections.delete(connection);
      },
    });
    this.#connections.add(connection);
    connection.challenge();
  }
}

function bind(server: Server, where: { host: string; port: number } | { path: string }): Promise<void> {
  const { host, port } = "path" in where ? { host: where.path, port: "unix" } : where;
  return new Promise((resolve, reject) => {
    server.once("error", (error) => {
      reject(new KvError("BIND_FAILED", { host, port, why: error.message }, { cause: error }));
    });
    server.listen(where, () => {
      server.removeAllListeners("error");
      // A connection that could not be accepted (no descriptors left) is the peer's to retry.
      server.on("error", () => {});
      server.unref();
      resolve();
    });
  });
}

function secureContext(tls: { readonly cert: string; readonly key: string }): SecureContext {
  try {
    return createSecureContext({ cert: tls.cert, key: tls.key });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new KvError("INVALID_ARGUMENT", { what: "listen.tls", why }, { cause: error });
  }
}

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);

/** What peers are told to dial: a listener on all addresses names the first that leads out of this host. */
function advertised(host: string): string {
  if (host !== "0.0.0.0" && host !== "::") return host;
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  return all.find((address) => !address.internal && address.family === "IPv4")?.address ?? "127.0.0.1";
}
