import { Decoder, encode } from "@msgpack/msgpack";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { Layout } from "../kv/layout.ts";
import { RANKS_LIMIT } from "./peer_ranks.ts";
import {
  type PlainField,
  plainArray,
  plainCount,
  plainMap,
  plainNullable,
  plainText,
  WireReader,
  WireWriter,
} from "./plain_wire.ts";
import {
  countField,
  epochField,
  pipelineField,
  plainEntries,
  requestIdField,
  textField,
  tokenField,
  withPlain,
} from "./wire_fields.ts";

const STATE_VERSION = 1;
/** 2 KiB and 200 bytes a rank: more is no state of ours. */
const STATE_LIMIT = 2048 + 200 * RANKS_LIMIT;
const TEXT_LIMIT = 1024;
/** A longer list of ranks goes the long way. */
const PLAIN_RANKS = 15;

/** Only values that the schema takes as well. */
const plainCountIf = (isRight: (value: number) => boolean): PlainField => ({
  write: plainCount.write,
  read: (from) => {
    const value = from.count();
    return value !== undefined && isRight(value) ? value : undefined;
  },
});

/** All states of one sender have the same layout: of the last one written, and of the last one that the schema has read, the bytes are kept. */
let written: { readonly layout: Layout; readonly bytes: Uint8Array } | undefined;
let read: typeof written;
const plainLayout: PlainField = {
  write: (to, layout: Layout) => {
    if (written?.layout !== layout) written = { layout, bytes: encode(layout, { ignoreUndefined: true }) };
    to.raw(written.bytes);
  },
  read: (from) => (read !== undefined && from.skip(read.bytes) ? read.layout : undefined),
};

const positiveField = withPlain(
  countField.min(1),
  plainCountIf((value) => value >= 1),
);

const rankShape = {
  rank: countField,
  epoch: epochField,
  /** `tcp://host:port`, or `tls://host:port`. */
  tcp: textField,
  /** Path of the unix socket beside it. */
  unix: withPlain(z.string().max(TEXT_LIMIT).nullable(), plainNullable(plainText(TEXT_LIMIT))),
  token: tokenField,
};
const rankField = z.object(rankShape);

const stateShape = {
  version: withPlain(
    z.literal(STATE_VERSION),
    plainCountIf((value) => value === STATE_VERSION),
  ),
  instance: textField,
  /** Of the whole model. */
  layout: withPlain(Layout, plainLayout),
  /** Of the instance, all of whose ranks hold a part. */
  tpSize: positiveField,
  ppSize: positiveField,
  pipeline: pipelineField.optional(),
  requestId: requestIdField,
  tokens: positiveField,
  ranks: withPlain(
    z.array(rankField).min(1).max(RANKS_LIMIT),
    plainArray(plainMap(plainEntries(rankShape) ?? []), PLAIN_RANKS),
  ),
};

const isInstance = ({ tpSize, ppSize }: { readonly tpSize: number; readonly ppSize: number }): boolean =>
  tpSize * ppSize <= RANKS_LIMIT;

/** The fields of a state, and the judge of every one. */
export const State = z.object(stateShape).refine(isInstance, `an instance has at most ${RANKS_LIMIT} ranks`);

/** One rank's part: where it listens and the right to fetch. */
export type RankState = Readonly<z.output<typeof rankField>>;

/** What prefill hands to decode through the router (`encoded_opaque_state`): all that is needed to fetch, nothing else. */
export type OpaqueState = Readonly<Omit<z.output<typeof State>, "version" | "pipeline" | "ranks">> & {
  readonly pipeline?: readonly number[] | undefined;
  readonly ranks: readonly RankState[];
};

/** The short way between values and bytes (docs/decisions/033-plain-frames.md). */
const plainState = plainMap(plainEntries(stateShape) ?? []);
const writer = new WireWriter();

/** Base64 of versioned msgpack, at most 2 KiB and 200 bytes a rank. */
export function encodeState(state: OpaqueState): string {
  plainState.write(writer, { version: STATE_VERSION, ...state } as never);
  return writer.take(0).toString("base64");
}

/** Between the states of a request's block tables: no character of base64. */
const TABLE_SEPARATOR = ".";

/** One state of those of a request's block tables, in the order in which peers pair them. */
export const joinTables = (states: readonly string[]): string => states.join(TABLE_SEPARATOR);

/** One of a single table is its own. */
export const tablesOf = (state: string): readonly string[] => state.split(TABLE_SEPARATOR);

/**
 * One state of the states that the ranks of an instance gave for one request: what a worker of several ranks answers with.
 * @throws KvError BAD_STATE, INVALID_ARGUMENT when they are not of one request, or two are of one rank
 */
export function joinStates(states: readonly string[]): string {
  const tables = states.map(tablesOf);
  if (tables.length === 0) throw new KvError("INVALID_ARGUMENT", { what: "states", why: "there are none" });
  if (tables.some(({ length }) => length !== tables[0]?.length)) {
    throw new KvError("INVALID_ARGUMENT", { what: "states", why: "they have unequal numbers of block tables" });
  }
  return joinTables((tables[0] ?? []).map((_, table) => joinRanks(tables.map((all) => all[table] ?? ""))));
}

function joinRanks(states: readonly string[]): string {
  const [first, ...rest] = states.map(decodeState) as [OpaqueState, ...OpaqueState[]];
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

/** The short way: what the schema would give, or undefined where the schema has to decide. */
function readPlain(raw: Buffer): OpaqueState | undefined {
  const reader = new WireReader(raw);
  const value = plainState.read(reader) as z.output<typeof State> | undefined;
  if (value === undefined || !reader.ended || value.ranks.length === 0 || !isInstance(value)) return undefined;
  const { version: _version, ...state } = value;
  return state;
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
  read = { layout: state.layout, bytes: encode((value as { readonly layout: unknown }).layout) };
  return state;
}
