import { decode, encode } from "@msgpack/msgpack";
import { z } from "zod";
import { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId } from "../ids.ts";
import { Layout } from "../kv/layout.ts";
import { countField, epochField, requestIdField, textField, tokenField } from "./wire_fields.ts";

const STATE_VERSION = 1;
/** 2 KiB and 200 bytes a rank, for 1024 ranks: more is no state of ours. */
const STATE_LIMIT = 2048 + 200 * 1024;

const RankState = z.object({
  rank: countField,
  epoch: epochField,
  /** `tcp://host:port`, or `tls://host:port`. */
  tcp: textField,
  /** Path of the unix socket beside it. */
  unix: textField.nullable(),
  token: tokenField,
});

const State = z.object({
  version: z.literal(STATE_VERSION),
  instance: textField,
  layout: Layout,
  requestId: requestIdField,
  tokens: countField.min(1),
  ranks: z.array(RankState).min(1).max(1024),
});

/** One rank's part: where it listens and the right to fetch. */
export interface RankState {
  readonly rank: number;
  readonly epoch: Epoch;
  readonly tcp: string;
  readonly unix: string | null;
  readonly token: CapabilityToken;
}

/** What prefill hands to decode through the router (`encoded_opaque_state`): all that is needed to fetch, nothing else. */
export interface OpaqueState {
  readonly instance: string;
  readonly layout: Layout;
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly ranks: readonly RankState[];
}

/** Base64 of versioned msgpack, at most 2 KiB and 200 bytes a rank. */
export function encodeState(state: OpaqueState): string {
  const wire = z.encode(State, { version: STATE_VERSION, ...state, ranks: [...state.ranks] });
  return Buffer.from(encode(wire)).toString("base64");
}

/** @throws KvError BAD_STATE, which says what is wrong with it */
export function decodeState(text: string): OpaqueState {
  if (text.length > STATE_LIMIT * 1.4) throw new KvError("BAD_STATE", { why: `it has ${text.length} characters` });
  let value: unknown;
  try {
    value = decode(Buffer.from(text, "base64"));
  } catch {
    throw new KvError("BAD_STATE", { why: "it is no base64 of msgpack" });
  }
  const parsed = State.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new KvError("BAD_STATE", { why: `${issue?.path.join(".") || "state"}: ${issue?.message ?? "not valid"}` });
  }
  return parsed.data;
}
