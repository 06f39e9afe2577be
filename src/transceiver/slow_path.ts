import { readdirSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import type { TransferReport } from "./api.ts";
import type { DialTarget } from "./dial.ts";

/** Below this share of what the link is known to move, a transfer is slow (spec system.md S176). */
const SHARE = 0.05;
/** Shorter ones say more about latency than about a rate. */
const BYTES_MIN = 8 << 20;
/** What one thread copies between two places of one machine's memory, decimal GB/s; no server that runs this is slower. */
const MEMORY_GB_PER_S = 8;
/** NIXL descriptors, or copies, that are smaller than this cost more than their bytes do. */
const PIECE_BYTES_MIN = 64 * 1024;
const WARNED_MAX = 1024;

/** What is known about the way to a peer. */
export interface LinkRate {
  readonly gbPerS: number;
  /** `memory of one machine`, `mlx5_0 (RDMA)`, `eth0`. */
  readonly what: string;
  readonly kind: "memory" | "rdma" | "network";
}

export interface SlowPathOptions {
  /** Of this machine's devices to another one; null: not known, and then nothing is called slow. */
  readonly network: () => LinkRate | null;
  /** Host names and addresses that are this machine. */
  readonly isHere: (host: string) => boolean;
  readonly warn: (fields: Readonly<Record<string, unknown>>, text: string) => void;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Raises one warning for each peer and path whose transfers stay far below what the link is known to move. */
export class SlowPaths {
  readonly #options: SlowPathOptions;
  readonly #warned = new Set<string>();
  #network: LinkRate | null | undefined;

  constructor(options: SlowPathOptions) {
    this.#options = options;
  }

  /** A receive has ended well. */
  ended(target: DialTarget, report: TransferReport): void {
    const { path, bytes, gbPerS } = report;
    if (bytes < BYTES_MIN || gbPerS <= 0) return;
    const key = `${target.name} ${path}`;
    if (this.#warned.has(key) || this.#warned.size >= WARNED_MAX) return;
    const rate = this.#rateTo(target);
    if (rate === null || gbPerS >= SHARE * rate.gbPerS) return;
    this.#warned.add(key);
    const percent = ((100 * gbPerS) / rate.gbPerS).toFixed(1);
    this.#options.warn(
      { peer: target.name, path, gbPerS, linkGbPerS: rate.gbPerS, link: rate.what, bytes },
      `a transfer from ${target.name} moved ${gbPerS.toFixed(2)} GB/s over ${path}, ${percent} % of ${rate.what}: ` +
        `${this.#reasons(report, rate).join("; ")}. kvt doctor --peer measures each path`,
    );
  }

  #rateTo({ tcp }: DialTarget): LinkRate | null {
    const host = URL.canParse(tcp) ? new URL(tcp).hostname.replace(/^\[|\]$/g, "") : "";
    if (this.#options.isHere(host)) {
      return { gbPerS: MEMORY_GB_PER_S, what: "what memory of one machine moves", kind: "memory" };
    }
    this.#network ??= this.#options.network();
    return this.#network;
  }

  #reasons(report: TransferReport, { kind }: LinkRate): readonly string[] {
    const { path, bytes, wire, pieces } = report;
    const { UCX_TLS: transports } = this.#options.env;
    const nixl = path.startsWith("nixl");
    const reasons: string[] = [];
    if (kind === "memory" && nixl) {
      reasons.push(
        "NIXL is taken between two processes of one machine, where shared memory would do (KVT_PATH, transfer.same_host and KVT_SOCKET_DIR decide)",
      );
    }
    if (nixl && transports !== undefined && /^\W*(tcp|self|,)+$/.test(transports)) {
      reasons.push(`UCX_TLS=${transports} leaves it TCP only`);
    } else if (nixl && kind === "rdma") {
      reasons.push("UCX may have taken TCP in place of RDMA (UCX_TLS, UCX_NET_DEVICES)");
    }
    const copies = wire?.descriptors ?? pieces;
    const size = copies > 0 ? bytes / copies : Number.POSITIVE_INFINITY;
    if (size < PIECE_BYTES_MIN) {
      const name = nixl ? "NIXL descriptors" : "copies";
      reasons.push(`its ${copies} ${name} have ${Math.round(size)} bytes each, and each has a cost whatever its size`);
    }
    if (reasons.length === 0)
      reasons.push(kind === "memory" ? "this machine is short of CPU" : "the link is shared or slow");
    return reasons;
  }
}

/** Whether a host of an endpoint is this machine: loopback, or an address of one of its interfaces. */
export function isThisMachine(host: string): boolean {
  if (host === "localhost" || host === "::1" || /^127\./.test(host)) return true;
  return Object.values(networkInterfaces()).some((addresses) => addresses?.some(({ address }) => address === host));
}

/** A way to other machines: a port of an RDMA device, or a network interface. */
export interface NetworkDevice {
  readonly name: string;
  readonly kind: "rdma" | "network";
  readonly up: boolean;
  /** null: it tells none. */
  readonly gbPerS: number | null;
}

/** RDMA ports first, without the loopback interface. */
export function networkDevices(sys = "/sys/class"): readonly NetworkDevice[] {
  return [...rdmaPorts(`${sys}/infiniband`), ...interfaces(`${sys}/net`)];
}

/** The fastest device that leads to other machines: an RDMA port that is up, else a network interface. */
export function fastestNetwork(sys = "/sys/class"): LinkRate | null {
  const devices = networkDevices(sys);
  return fastest(devices, "rdma") ?? fastest(devices, "network");
}

function rdmaPorts(folder: string): readonly NetworkDevice[] {
  return namesIn(folder).flatMap((device) => {
    const ports = namesIn(`${folder}/${device}/ports`);
    return ports.map((port): NetworkDevice => {
      const of = `${folder}/${device}/ports/${port}`;
      const up = textOf(`${of}/state`).includes("ACTIVE");
      const name = ports.length > 1 ? `${device}:${port}` : device;
      // "400 Gb/sec (4X NDR)"
      return { name, kind: "rdma", up, gbPerS: rateOf(Number.parseFloat(textOf(`${of}/rate`)) / 8) };
    });
  });
}

const interfaces = (folder: string): readonly NetworkDevice[] =>
  namesIn(folder)
    .filter((name) => name !== "lo")
    .map((name) => ({
      name,
      kind: "network",
      up: textOf(`${folder}/${name}/operstate`) === "up",
      // Mb/s; -1 of one that has none.
      gbPerS: rateOf(Number(textOf(`${folder}/${name}/speed`) || Number.NaN) / 8000),
    }));

const rateOf = (gbPerS: number): number | null => (gbPerS > 0 ? gbPerS : null);

function fastest(devices: readonly NetworkDevice[], kind: NetworkDevice["kind"]): LinkRate | null {
  let best: LinkRate | null = null;
  for (const { name, gbPerS, ...device } of devices) {
    if (device.kind !== kind || !device.up || gbPerS === null || gbPerS <= (best?.gbPerS ?? 0)) continue;
    best = { gbPerS, what: `what ${name}${kind === "rdma" ? " (RDMA)" : ""} moves`, kind };
  }
  return best;
}

function namesIn(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, "utf8").trim();
  } catch {
    return "";
  }
}
