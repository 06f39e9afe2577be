import { timingSafeEqual } from "node:crypto";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { requestIdToBigInt } from "../ids.ts";
import { Id64, parseBody, parseRequest } from "../openai/index.ts";
import { decodeState } from "../transceiver/opaque_state.ts";
import type { Records } from "./records.ts";
import type { WorkerParts } from "./worker_parts.ts";

export interface KvRouteOptions {
  readonly parts: Pick<WorkerParts, "scheduler" | "transceiver">;
  readonly records: Records;
  /** KVT_AUTH_TOKEN; null: loopback callers only. */
  readonly authToken: string | null;
}

const Release = z.looseObject({ ctx_request_id: Id64.optional(), encoded_opaque_state: z.string().max(1 << 20) });
const Abort = z.looseObject({ request_id: z.string().min(1).max(128) });
const TransfersQuery = z.looseObject({ request_id: z.string().max(128).optional() });

/** The routes of S120. */
export function addKvRoutes(front: FastifyInstance, options: KvRouteOptions): void {
  const { scheduler, transceiver } = options.parts;

  // No guard: the state's token is the right to do it.
  front.post("/kv/release", async (request) => {
    const body = parseRequest(Release, parseBody(bytesOf(request)));
    const { requestId } = decodeState(body.encoded_opaque_state);
    if (body.ctx_request_id !== undefined && body.ctx_request_id !== requestIdToBigInt(requestId)) {
      const why = `it belongs to request ${requestIdToBigInt(requestId)}, ctx_request_id names ${body.ctx_request_id}`;
      throw new KvError("BAD_STATE", { why });
    }
    const outcome = scheduler.releaseOffer(body.encoded_opaque_state, requestId);
    if (outcome === "not_found") throw new KvError("NO_OFFER", { peer: transceiver.instance, request: requestId });
    return { outcome };
  });

  front.post("/kv/abort", async (request) => {
    guard(request, options.authToken);
    const { request_id: id } = parseRequest(Abort, parseBody(bytesOf(request)));
    const outcomes = scheduler.abortById(id, "POST /kv/abort");
    if (outcomes.length > 0) {
      return { aborted: outcomes.length, outcome: outcomes.includes("in_flight") ? "in_flight" : outcomes[0] };
    }
    if (options.records.of(id).length === 0) throw new KvError("REQUEST_NOT_FOUND", { request: id });
    return { aborted: 0, outcome: "already_complete" };
  });

  front.get("/kv/peers", async (request) => {
    guard(request, options.authToken);
    const { peers, bytesReceived, blocks, sends, receives } = transceiver.stats();
    return {
      instance: transceiver.instance,
      epoch: transceiver.epoch,
      bytes_received: bytesReceived,
      blocks,
      sends,
      receives,
      peers: peers.map(({ instance, epoch, endpoint, path, connected, gbPerS }) => ({
        instance,
        epoch,
        endpoint,
        transport: path,
        connected,
        gb_per_s: gbPerS,
      })),
    };
  });

  front.get("/kv/transfers", async (request) => {
    guard(request, options.authToken);
    return { records: options.records.of(parseRequest(TransfersQuery, request.query).request_id) };
  });
}

const bytesOf = (request: FastifyRequest): Uint8Array =>
  request.body instanceof Uint8Array ? request.body : new Uint8Array();

/** Bearer KVT_AUTH_TOKEN when there is one, else callers on this host only. @throws KvError UNAUTHORIZED */
export function guard(request: FastifyRequest, authToken: string | null): void {
  const what = `${request.method} ${request.routeOptions.url ?? ""}`;
  if (authToken === null) {
    if (isLoopback(request.socket.remoteAddress ?? "")) return;
    throw new KvError("UNAUTHORIZED", { what });
  }
  const given = Buffer.from(request.headers.authorization ?? "");
  const wanted = Buffer.from(`Bearer ${authToken}`);
  if (given.length !== wanted.length || !timingSafeEqual(given, wanted)) throw new KvError("UNAUTHORIZED", { what });
}

const isLoopback = (address: string): boolean =>
  address === "::1" || address.startsWith("127.") || address.startsWith("::ffff:127.");
