import { z } from "zod";
import { KvError } from "../errors.ts";
import type { Epoch } from "../ids.ts";
import type { DialTarget } from "./dial.ts";

/**
 * Where a rank can be asked before there is a state (`ctx_info_endpoint` of /server_info): `tcp://host:port`, or `tls://…`, with epoch,
 * instance and unix socket as its query. No secret: whoever asks proves itself by the cluster secret or its uid.
 */
export function infoEndpoint(target: DialTarget): string {
  const query = new URLSearchParams({ epoch: target.epoch, instance: target.name });
  if (target.unix !== null) query.set("unix", target.unix);
  return `${target.tcp}?${query}`;
}

const Query = z.object({
  epoch: z.string().regex(/^[0-9a-f]{16}$/),
  instance: z.string().min(1).max(1024),
  unix: z.string().max(1024).optional(),
});

/** @throws KvError BAD_STATE when it is none of ours */
export function parseInfoEndpoint(text: string): DialTarget {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const query = Query.safeParse(Object.fromEntries(url?.searchParams ?? []));
  if (url === undefined || (url.protocol !== "tcp:" && url.protocol !== "tls:") || !query.success) {
    throw new KvError("BAD_STATE", { why: `${JSON.stringify(text.slice(0, 200))} is no endpoint of a transceiver` });
  }
  const { epoch, instance: name, unix = null } = query.data;
  return { name, epoch: epoch as Epoch, tcp: `${url.protocol}//${url.host}`, unix };
}
