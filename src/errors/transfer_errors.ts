import type { ErrorSpec } from "./spec.ts";

/** Transfers and the peers that they are with. */
export const transferErrors = {
  // --- transfers --------------------------------------------------------------------------------------------------------
  BAD_STATE: {
    scope: "transfer",
    status: 400,
    message: "the opaque state is not one of ours: {why}",
    remedy: "pair this worker with a kv-transceiver context worker of a compatible version",
  },
  CANCELLED: {
    scope: "transfer",
    status: 499,
    message: "transfer {transfer} was cancelled: {why}",
    remedy: "none: the caller asked for it",
  },
  TRANSFER_TIMEOUT: {
    scope: "transfer",
    status: 504,
    message: "transfer {transfer} did not end within {ms} ms (kv_transfer_timeout_ms)",
    remedy: "raise kv_transfer_timeout_ms, or look for a slow path with `kvt doctor`",
  },
  QUEUE_TIMEOUT: {
    scope: "transfer",
    status: 503,
    message: "transfer {transfer} waited {ms} ms for its turn and was given up",
    remedy: "add workers, or raise kv_transfer_timeout_ms, which also limits the queue",
  },
  LEASE_EXPIRED: {
    scope: "transfer",
    status: 504,
    message:
      "the lease of transfer {transfer} ended after {ms} ms without word from the receiver; its outcome is unknown here",
    remedy: "look at the receiver's log; its blocks here are free again",
  },
  OFFERS_FULL: {
    scope: "instance",
    status: 429,
    message: "{open} offers of KV are open already, the limit is {limit} (maxOffers)",
    remedy:
      "retry later or elsewhere: offers end when they are fetched or released, at the latest after kv_transfer_timeout_ms",
  },
  OFFER_EXPIRED: {
    scope: "transfer",
    status: 504,
    message: "nobody fetched the KV of request {request} within {ms} ms",
    remedy: "fetch sooner, or raise kv_transfer_timeout_ms",
  },
  NO_OFFER: {
    scope: "transfer",
    status: 404,
    message: "peer {peer} holds no offer for request {request}",
    remedy: "prefill again: the offer was fetched, released, or has expired",
  },
  GONE: {
    scope: "transfer",
    status: 404,
    message: "the offer of request {request} at {peer} has ended",
    remedy: "prefill again",
  },
  GAVE_WAY: {
    scope: "transfer",
    status: 503,
    message:
      "request {request} gave way to {older}: for {ms} ms it waited for blocks of older requests, which may wait for its own",
    remedy: "send it again, as our router does by itself; larger pools or workers of one role each avoid it",
  },
  BUSY: {
    scope: "transfer",
    status: 503,
    message: "the offer of request {request} is leased to an earlier receiver for {ms} ms more",
    remedy: "retry after that time, or prefill again",
  },
  BAD_TOKEN: {
    scope: "transfer",
    status: 403,
    message: "peer {peer} refused the capability token of request {request}",
    remedy: "use the opaque state exactly as the context worker returned it",
  },
  SENDER_ABORTED: {
    scope: "transfer",
    status: 502,
    message: "the sender ended transfer {transfer}: {why}",
    remedy: "prefill again",
  },
  RECEIVER_FAILED: {
    scope: "transfer",
    status: 502,
    message: "the receiver ended transfer {transfer} without the data: {why}",
    remedy: "look at the receiver's log",
  },
  COPY_FAILED: {
    scope: "transfer",
    status: 502,
    message: "moving the blocks of transfer {transfer} failed on path {path}: {why}",
    remedy: "see `kvt doctor`; the request can be prefilled again",
  },
  DIGEST_MISMATCH: {
    scope: "transfer",
    status: 502,
    message:
      "transfer {transfer} from {peer}: block {block} (number {index} of the sequence, tokens {from} to {to}, the sender's block {source}) arrived with another digest than the sender's, as {more} other blocks did",
    remedy:
      "it was read twice; prefill the request again. If it comes back, suspect memory, transport or an engine that writes into offered blocks",
  },
  // --- peers ------------------------------------------------------------------------------------------------------------
  PEER_UNREACHABLE: {
    scope: "peer",
    status: 503,
    message: "no connection to peer {peer}: {why}",
    remedy: "check that the worker runs and its control port is reachable",
  },
  PEER_LOST: {
    scope: "peer",
    status: 503,
    message: "peer {peer} (epoch {epoch}) was silent for {ms} ms or closed the connection",
    remedy: "its blocks return when the lease ends; the request can be prefilled again",
  },
  STALE_EPOCH: {
    scope: "peer",
    status: 503,
    message: "peer {peer} restarted: epoch {epoch} is gone",
    remedy: "prefill again",
  },
  PEER_REFUSED: {
    scope: "peer",
    status: 403,
    message: "peer {peer} refused the connection: {why}",
    remedy: "give both sides the same KVT_AUTH_TOKEN, or use an offer's state",
  },
  PROTOCOL: {
    scope: "peer",
    status: 502,
    message: "peer {peer} broke the control protocol: {why}",
    remedy: "run matching kv-transceiver versions on both sides",
  },
  LAYOUT_MISMATCH: {
    scope: "peer",
    status: 503,
    message: "the KV layouts of this side and {peer} differ: {fields}",
    remedy: "start both workers with the same model, KV dtype and tokens_per_block",
  },
  NO_PATH: {
    scope: "peer",
    status: 503,
    message: "no path moves KV between this process and {peer}: {why}",
    remedy:
      "on one host let both share KVT_SOCKET_DIR; between hosts bring NIXL to both (`kvt nixl install`); `kvt doctor --peer` looks at the pair",
  },
} as const satisfies Record<string, ErrorSpec>;
