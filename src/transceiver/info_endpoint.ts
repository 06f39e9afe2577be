import { z } from "zod";
import { KvError } from "../errors.ts";
import type { Epoch } from "../ids.ts";
import type { ParallelSizes } from "../kv/ranks.ts";
import type { DialTarget } from "./dial.ts";
import { RANKS_LIMIT } from "./peer_ranks.ts";

/** A rank that can be asked before there is a state, and its place in its instance. */
export interface RankEndpoint {
  readonly target: DialTarget;
  readonly rank: number;
  readonly sizes: ParallelSizes;
}

/**
 * Where a rank can be asked before there is a state (`ctx_info_endpoint` of /server_info): `tcp://host:port`, or `tls://…`, with epoch,
 * instance, unix socket and the rank's place as its query. No secret: whoever asks proves itself by the cluster secret or its uid.
 */
export function infoEndpoint({ target, rank, sizes }: RankEndpoint): string {
  const query = new URLSearchParams({ epoch: target.epoch, instance: target.name });
  if (target.unix !== null) query.set("unix", target.unix);
  if (sizes.tpSize * sizes.ppSize > 1) {
    for (const [name, value] of Object.entries({ rank, tp: sizes.tpSize, pp: sizes.ppSize }))
      query.set(name, String(value));
  }
  if (sizes.pipeline !== undefined) query.set("layers", sizes.pipeline.join("-"));
  return `${target.tcp}?${query}`;
}

const count = z.coerce.number().int().min(1).max(RANKS_LIMIT).default(1);
const Query = z.object({
  epoch: z.string().regex(/^[0-9a-f]{16}$/),
  instance: z.string().min(1).max(1024),
  unix: z.string().max(1024).optional(),
  rank: z.coerce
    .number()
    .int()
    .min(0)
    .max(RANKS_LIMIT - 1)
    .default(0),
  tp: count,
  pp: count,
  layers: z
    .string()
    .regex(/^[1-9][0-9]{0,3}(-[1-9][0-9]{0,3})*$/)
    .max(5 * RANKS_LIMIT)
    .optional(),
});

/** @throws KvError BAD_STATE when it is none of ours */
export function parseInfoEndpoint(text: string): RankEndpoint {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const query = Query.safeParse(Object.fromEntries(url?.searchParams ?? []));
  if (url === undefined || (url.protocol !== "tcp:" && url.protocol !== "tls:") || !query.success) {
    throw new KvError("BAD_STATE", { why: `${JSON.stringify(text.slice(0, 200))} is no endpoint of a transceiver` });
  }
  const { epoch, instance: name, unix = null, rank, tp: tpSize, pp: ppSize, layers } = query.data;
  const pipeline = layers?.split("-").map(Number);
  const target = { name, epoch: epoch as Epoch, tcp: `${url.protocol}//${url.host}`, unix };
  return { target, rank, sizes: { tpSize, ppSize, pipeline } };
}
