import { Decoder, encode } from "@msgpack/msgpack";
import { z } from "zod";
import { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId } from "../ids.ts";
import { Layout } from "../kv/layout.ts";
import { RANKS_LIMIT } from "./peer_ranks.ts";
import {
  type PlainField,
  plainArray,
  plainCount,
  plainHex,
  plainMap,
  plainNullable,
  plainText,
  WireReader,
} from "./plain_wire.ts";
import {
  countField,
  epochField,
  pipelineField,
  plainEntries,
  plainPipeline,
  requestIdField,
  textField,
  tokenField,
  withPlain,
} from "./wire_fields.ts";

const STATE_VERSION = 1;
/** 2 KiB and 200 bytes a rank: more is no state of ours. */
const STATE_LIMIT = 2048 + 200 * RANKS_LIMIT;

const TEXT_LIMIT = 1024;
const rankShape = {
  rank: countField,
  epoch: epochField,
  /** `tcp://host:port`, or `tls://host:port`. */
  tcp: textField,
  /** Path of the unix socket beside it. */
  unix: withPlain(z.string().max(TEXT_LIMIT).nullable(), plainNullable(plainText(TEXT_LIMIT))),
  token: tokenField,
};

/** Of the state before, as it came: the states of one sender all have the same. */
let lastLayout: { readonly bytes: Uint8Array; readonly layout: Layout } | undefined;
const lastLayoutAgain: PlainField = {
  write: () => {},
  read: (from) => (lastLayout !== undefined && from.skip(lastLayout.bytes) ? lastLayout.layout : undefined),
};

const stateShape = {
  version: z.literal(STATE_VERSION),
  instance: textField,
  layout: Layout,
  tpSize: countField.min(1),
  ppSize: countField.min(1),
  pipeline: pipelineField.optional(),
  requestId: requestIdField,
  tokens: countField.min(1),
  ranks: z.array(z.object(rankShape)).min(1).max(RANKS_LIMIT),
};

/** The fields of a state, and the judge of every one. */
export const State = z
  .object(stateShape)
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
  readonly pipeline?: readonly number[] | undefined;
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly ranks: readonly RankState[];
}

/** Base64 of versioned msgpack, at most 2 KiB and 200 bytes a rank. */
export function encodeState(state: OpaqueState): string {
  const { pipeline, ...rest } = state;
  const stages = pipeline === undefined ? {} : { pipeline: [...pipeline] };
  const wire = z.encode(State, { version: STATE_VERSION, ...rest, ...stages, ranks: [...state.ranks] });
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
const plainState = plainMap([
  { name: "version", field: plainCount, optional: false },
  { name: "instance", field: plainText(TEXT_LIMIT), optional: false },
  { name: "layout", field: lastLayoutAgain, optional: false },
  { name: "tpSize", field: plainCount, optional: false },
  { name: "ppSize", field: plainCount, optional: false },
  { name: "pipeline", field: plainPipeline, optional: true },
  { name: "requestId", field: plainHex(8, false), optional: false },
  { name: "tokens", field: plainCount, optional: false },
  { name: "ranks", field: plainArray(plainMap(plainEntries(rankShape) ?? []), 15), optional: false },
]);

/** The short way: what the schema would give, or undefined where the schema has to decide. */
function readPlain(raw: Buffer): OpaqueState | undefined {
  const reader = new WireReader(raw);
  const value = plainState.read(reader) as (OpaqueState & { readonly version: number }) | undefined;
  if (value === undefined || !reader.ended || value.version !== STATE_VERSION) return undefined;
  const { version: _version, ...state } = value;
  const { tokens, tpSize, ppSize, ranks } = state;
  const whole = tokens >= 1 && tpSize >= 1 && ppSize >= 1 && ranks.length >= 1;
  return whole && tpSize * ppSize <= RANKS_LIMIT ? state : undefined;
}

/** @throws KvError BAD_STATE, which says what is wrong with it */
export function decodeState(text: string): OpaqueState {
  if (text.length > STATE_LIMIT * 1.4) throw new KvError("BAD_STATE", { why: `it has ${text.length} characters` });
  const raw = Buffer.from(text, "base64");
  const plain = readPlain(raw);
  if (plain !== undefined) return plain;
  let value: unknown;
  try {
    value = decoder.decode(raw);
  } catch {
    throw new KvError("BAD_STATE", { why: "it is no base64 of msgpack" });
  }
  const parsed = State.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new KvError("BAD_STATE", { why: `${issue?.path.join(".") || "state"}: ${issue?.message ?? "not valid"}` });
  }
  const { version: _version, ...state } = parsed.data;
  lastLayout = { bytes: encode((value as { readonly layout: unknown }).layout), layout: state.layout };
  return state;
}
