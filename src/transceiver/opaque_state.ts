import { Decoder, encode } from "@msgpack/msgpack";
import { z } from "zod";
import { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId } from "../ids.ts";
import { Layout } from "../kv/layout.ts";
import { RANKS_LIMIT } from "./peer_ranks.ts";
import { countField, epochField, readerOfFields, requestIdField, textField, tokenField } from "./wire_fields.ts";

const STATE_VERSION = 1;
/** 2 KiB and 200 bytes a rank: more is no state of ours. */
const STATE_LIMIT = 2048 + 200 * RANKS_LIMIT;

const RankState = z.object({
  rank: countField,
  epoch: epochField,
  /** `tcp://host:port`, or `tls://host:port`. */
  tcp: textField,
  /** Path of the unix socket beside it. */
  unix: textField.nullable(),
  token: tokenField,
});

/** The fields of a state, and the judge of every one. */
export const State = z
  .object({
    version: z.literal(STATE_VERSION),
    instance: textField,
    layout: Layout,
    tpSize: countField.min(1),
    ppSize: countField.min(1),
    requestId: requestIdField,
    tokens: countField.min(1),
    ranks: z.array(RankState).min(1).max(RANKS_LIMIT),
  })
  .refine(({ tpSize, ppSize }) => tpSize * ppSize <= RANKS_LIMIT, `an instance has at most ${RANKS_LIMIT} ranks`);

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
  /** Of the whole model. */
  readonly layout: Layout;
  /** Of the instance, all of whose ranks hold a part. */
  readonly tpSize: number;
  readonly ppSize: number;
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly ranks: readonly RankState[];
}

/** Base64 of versioned msgpack, at most 2 KiB and 200 bytes a rank. */
export function encodeState(state: OpaqueState): string {
  const wire = z.encode(State, { version: STATE_VERSION, ...state, ranks: [...state.ranks] });
  return Buffer.from(encode(wire)).toString("base64");
}

/**
 * One state of the states that the ranks of an instance gave for one request: what a worker of several ranks answers with.
 * @throws KvError BAD_STATE, INVALID_ARGUMENT when they are not of one request, or two are of one rank
 */
export function joinStates(states: readonly string[]): string {
  const [first, ...rest] = states.map(decodeState);
  if (first === undefined) throw new KvError("INVALID_ARGUMENT", { what: "states", why: "there are none" });
  const ranks = [first, ...rest].flatMap((state) => state.ranks).sort((left, right) => left.rank - right.rank);
  const alike = (state: OpaqueState): boolean =>
    state.instance === first.instance && state.requestId === first.requestId && state.tokens === first.tokens;
  if (!rest.every(alike) || new Set(ranks.map(({ rank }) => rank)).size < ranks.length) {
    const why = "they are not of the ranks of one instance for one request";
    throw new KvError("INVALID_ARGUMENT", { what: `${states.length} states`, why });
  }
  return encodeState({ ...first, ranks });
}

const decoder = new Decoder();
const readRank = readerOfFields({
  rank: countField,
  epoch: epochField,
  tcp: textField,
  unix: textField,
  token: tokenField,
});
const readHead = readerOfFields({
  instance: textField,
  tpSize: countField,
  ppSize: countField,
  requestId: requestIdField,
  tokens: countField,
});
/** Of the last state with its words as they came: the states of one sender all have the same. */
let lastLayout: { readonly raw: Readonly<Record<string, unknown>>; readonly layout: Layout } | undefined;

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function readLayout(raw: unknown): Layout | undefined {
  if (!isRecord(raw)) return undefined;
  const names = Object.keys(raw);
  const known = lastLayout;
  if (known !== undefined && names.length === Object.keys(known.raw).length) {
    if (names.every((name) => Object.hasOwn(known.raw, name) && raw[name] === known.raw[name])) return known.layout;
  }
  const { data: layout } = Layout.safeParse(raw);
  if (layout !== undefined) lastLayout = { raw, layout };
  return layout;
}

/** The short way for a state of one rank: what the schema would give, or undefined where the schema has to decide. */
function readPlain(value: unknown): OpaqueState | undefined {
  if (!isRecord(value) || value.version !== STATE_VERSION || !Array.isArray(value.ranks)) return undefined;
  const [rawRank]: unknown[] = value.ranks;
  if (value.ranks.length !== 1 || !isRecord(rawRank)) return undefined;
  const head = readHead(value);
  const rank = readRank(rawRank);
  const layout = readLayout(value.layout);
  if (head === undefined || head.tokens < 1 || head.tpSize < 1 || head.ppSize < 1) return undefined;
  if (head.tpSize * head.ppSize > RANKS_LIMIT) return undefined;
  if (rank === undefined || layout === undefined) return undefined;
  return { ...head, layout, ranks: [rank] };
}

/** @throws KvError BAD_STATE, which says what is wrong with it */
export function decodeState(text: string): OpaqueState {
  if (text.length > STATE_LIMIT * 1.4) throw new KvError("BAD_STATE", { why: `it has ${text.length} characters` });
  let value: unknown;
  try {
    value = decoder.decode(Buffer.from(text, "base64"));
  } catch {
    throw new KvError("BAD_STATE", { why: "it is no base64 of msgpack" });
  }
  const plain = readPlain(value);
  if (plain !== undefined) return plain;
  const parsed = State.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new KvError("BAD_STATE", { why: `${issue?.path.join(".") || "state"}: ${issue?.message ?? "not valid"}` });
  }
  const { version: _version, ...state } = parsed.data;
  return state;
}
