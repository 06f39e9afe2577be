import { isIPv6 } from "node:net";
import type { WorkerAddress } from "./settings.ts";

/**
 * Reads one entry of `urls` (S41): `host:port`, `http://host:port`, `https://host:port`, IPv6 in brackets.
 * @returns the address, or a sentence that says what is wrong
 */
export function parseServerUrl(url: string): WorkerAddress | string {
  const match = /^(?:(https?):\/\/)?(\[[^\]\s]+\]|[^:/\s[\]]+)(?::(\d{1,5}))?\/?$/i.exec(url);
  if (!match) {
    return isIPv6(url.replace(/:\d+$/, "")) || isIPv6(url)
      ? `write an IPv6 address in brackets: [${url.replace(/:\d+$/, "")}]:8001`
      : "write host:port, http://host:port or https://host:port";
  }
  const [, scheme = "http", host = "", portText] = match;
  if (host.startsWith("[") && !isIPv6(host.slice(1, -1))) return `${host} is no IPv6 address`;
  if (portText === undefined) return `the port is missing: write ${host}:8001`;
  const port = Number(portText);
  if (port < 1 || port > 65535) return `port ${portText} is not in 1..65535`;
  return { url, origin: `${scheme.toLowerCase()}://${host.toLowerCase()}:${port}` };
}
