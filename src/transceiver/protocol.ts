import { DecodeError, Decoder, Encoder } from "@msgpack/msgpack";
import { z } from "zod";
import { Layout } from "../kv/layout.ts";
import { type PlainField, plainArray, plainMap, plainText, plainWord, WireReader, WireWriter } from "./plain_wire.ts";
import { verifyModes } from "./verification.ts";
import {
  blocksField,
  bytesField,
  countField,
  digestField,
  epochField,
  millisField,
  nonceField,
  pipelineField,
  plainEntries,
  proofField,
  requestIdField,
  textField,
  tokenField,
  transferIdField,
  withPlain,
  writerOf,
} from "./wire_fields.ts";

/** Rises when a frame changes in a way that an older peer would misread; new optional fields don't raise it. */
export const PROTOCOL_VERSION = 1;
/** Largest frame after its length prefix. */
export const FRAME_LIMIT = 1 << 20;
/** Transfers that one RENEW or HELLO may name. */
export const IDS_LIMIT = 4096;

/** A section of 64 KiB for each path, and none more than there are paths. */
const DESCRIPTOR_BYTES = 1 << 18;

/** What a refused PULL is told; the receiver raises the KvError of the same code (LAYOUT: LAYOUT_MISMATCH). */
export const refuseCodes = ["GONE", "BUSY", "BAD_TOKEN", "LAYOUT", "NO_OFFER", "QUEUE_TIMEOUT", "DRAINING"] as const;
export type RefuseCode = (typeof refuseCodes)[number];

/** Why the sender ended a transfer. A code that this version does not know reads as FAILED. */
export const abortCodes = ["CANCELLED", "TRANSFER_TIMEOUT", "LEASE_EXPIRED", "FAILED"] as const;
export type AbortCode = (typeof abortCodes)[number];

/** How the receiver ended an attempt; `ok` is the only one after which it may be COMPLETE. */
export const doneStatuses = ["ok", "cancelled", "timed_out", "failed"] as const;
export type DoneStatus = (typeof doneStatuses)[number];

export const peerErrors = ["BAD_PROOF", "NO_OFFER", "NO_PATH", "VERSION", "PROTOCOL", "UNKNOWN_TYPE", "BUSY"] as const;

/** Epochs of sender and receiver as the writer knows them; a frame that names others moves nothing (I6). */
const epochs = { se: epochField, re: epochField };
const transfer = { ...epochs, transferId: transferIdField };
const ids = z.array(transferIdField).max(IDS_LIMIT);
/** How far a path's name may go. */
const NAME_LIMIT = 64;
const PATHS_LIMIT = 16;
const pathField = withPlain(z.string().max(NAME_LIMIT), plainText(NAME_LIMIT));
const readerShape = {
  rank: countField,
  tpSize: countField,
  ppSize: countField,
  pipeline: pipelineField.optional(),
  dpRank: countField.optional(),
};

/** Absent: that side has none, or is of an older version. */
const nixlField = z.object({
  plugin: z.string().max(NAME_LIMIT),
  version: z.string().max(NAME_LIMIT),
  alone: z.boolean(),
});

export const readyUnits = ["tokens", "layers"] as const;

/** Every frame and its fields (docs/protocol.md). `z.object` drops fields that it does not know. */
export const frameFields = {
  CHALLENGE: z.object({ version: countField, nonce: nonceField, secret: z.boolean() }),
  HELLO: z.object({
    ...epochs,
    version: countField,
    instance: textField,
    rank: countField,
    layoutDigest: digestField,
    connection: countField,
    live: ids,
    nonce: nonceField,
    /** "uid" on a unix socket, "secret", or the 16 hex digits of a request id whose token keys the proof. */
    key: z.string().max(32),
    proof: proofField,
    nixl: nixlField.optional(),
  }),
  WELCOME: z.object({
    ...epochs,
    instance: textField,
    layout: Layout,
    /** Empty when the layouts differ: nothing could be read with it. */
    descriptor: bytesField.refine((raw) => raw.length <= DESCRIPTOR_BYTES, `must be at most ${DESCRIPTOR_BYTES} bytes`),
    /** `pulls`: how many of one receiver are served at the same time; it keeps the others back. */
    limits: z.object({ leaseMs: millisField.min(1), stallMs: millisField, pulls: z.int().min(1).max(4096).optional() }),
    proof: proofField,
    nixl: nixlField.optional(),
  }),
  STALE_EPOCH: z.object({ ...epochs, transferId: transferIdField.optional() }),
  PULL: z.object({
    ...transfer,
    requestId: requestIdField,
    /** Absent: generation-first, over a connection that the cluster secret or the uid has proven; it waits for the offer. */
    token: tokenField.optional(),
    from: countField,
    to: countField,
    reader: withPlain(z.object(readerShape), plainMap(plainEntries(readerShape) ?? [])),
    /** What it compares with digests of the sender; absent: nothing. A mode of a newer version is not served. */
    verify: withPlain(z.enum(verifyModes).catch("off"), plainWord(verifyModes)).optional(),
    /** What READY may count for it: whole tokens (default), or also their first layers. */
    readyIn: withPlain(z.enum(readyUnits).catch("tokens"), plainWord(readyUnits)).optional(),
    paths: withPlain(z.array(pathField).max(PATHS_LIMIT), plainArray(plainText(NAME_LIMIT), PATHS_LIMIT)),
  }),
  GRANT: z.object({
    ...transfer,
    /** The last RENEW heard for this pull, 0: none. */
    seq: countField,
    leaseMs: millisField.min(1),
    path: pathField,
    blocks: blocksField,
    ready: countField,
  }),
  REFUSE: z.object({
    ...transfer,
    code: z.enum(refuseCodes).catch("GONE"),
    retryAfterMs: millisField,
    text: textField,
  }),
  READY: z.object({
    ...transfer,
    tokens: countField,
    /** Visible only in so many first layers of the model; absent: in all. Only to a reader whose PULL has readyIn "layers". */
    layers: countField.optional(),
    /** Place of the first of `digests`, 8 bytes each, in the order of the blocks that the receiver compares. */
    digestsFrom: countField.optional(),
    digests: bytesField.optional(),
  }),
  /** All tokens are visible, and what generation-first needs of the prefill; written again after each GRANT of a finished offer. */
  FINISHED: z.object({
    ...transfer,
    tokens: countField,
    firstTokens: z.array(countField).min(1).max(64),
    firstLogProbs: z.array(z.unknown()).max(64).optional(),
    /** Prompt tokens that the sender's side had in its prefix cache. */
    cachedTokens: countField.optional(),
  }),
  RENEW: z.object({ ...epochs, seq: countField, ids }),
  RENEWED: z.object({ ...epochs, seq: countField, ids, waiting: ids }),
  DONE: z.object({
    ...transfer,
    status: withPlain(z.enum(doneStatuses).catch("failed"), plainWord(doneStatuses)),
    bytes: countField,
  }),
  ABORT: z.object({ ...transfer, code: z.enum(abortCodes).catch("FAILED"), text: textField }),
  PING: z.object({ ...epochs, n: countField }),
  PONG: z.object({ ...epochs, n: countField }),
  ERROR: z.object({ code: z.enum(peerErrors).catch("PROTOCOL"), text: textField }),
} as const;

export type FrameType = keyof typeof frameFields;
export type FrameOf<Type extends FrameType> = { readonly type: Type } & Readonly<z.output<(typeof frameFields)[Type]>>;
export type Frame = { [Type in FrameType]: FrameOf<Type> }[FrameType];

/** Who may write what; a frame that comes the wrong way breaks the protocol. */
const receiverFrames = ["HELLO", "PULL", "RENEW", "DONE", "PING", "PONG", "ERROR"] as const satisfies FrameType[];
const senderFrames = [
  "CHALLENGE",
  "WELCOME",
  "STALE_EPOCH",
  "GRANT",
  "REFUSE",
  "READY",
  "FINISHED",
  "RENEWED",
  "ABORT",
  "PING",
  "PONG",
  "ERROR",
] as const satisfies FrameType[];
export type ReceiverFrame = Extract<Frame, { type: (typeof receiverFrames)[number] }>;
export type SenderFrame = Extract<Frame, { type: (typeof senderFrames)[number] }>;

export type Decoded<F extends Frame> =
  | { readonly ok: true; readonly frame: F }
  /** `unknown`: a type of a newer version, answered and otherwise ignored. */
  | { readonly ok: false; readonly unknown: boolean; readonly why: string };

// One of each for the process: a new one would allocate its buffers for every frame.
const encoder = new Encoder();
const decoder = new Decoder();

type FieldWriter = readonly [name: string, write: ((value: never) => unknown) | undefined];
const fieldWriters = new Map<string, readonly FieldWriter[]>(
  Object.entries(frameFields).map(([type, { shape }]) => [
    type,
    Object.entries(shape).map(([name, field]) => [name, writerOf(field as z.ZodType)] as const),
  ]),
);

/** The frames of each transfer go the short way; each other frame is rare, written by the library and read by its schema. */
const plainFrames = new Map<string, PlainField>();
for (const type of ["PULL", "GRANT", "READY", "DONE"] as const) {
  const entries = plainEntries(frameFields[type].shape);
  if (entries !== undefined) plainFrames.set(type, plainMap(entries, type));
}
const writer = new WireWriter();

/** The frame behind `headroom` free bytes. */
export function encodeFrame(frame: Frame, headroom = 0): Buffer {
  const plain = plainFrames.get(frame.type);
  if (plain !== undefined) {
    plain.write(writer, frame as never);
    return writer.take(headroom);
  }
  const wire: Record<string, unknown> = { type: frame.type };
  const values: Readonly<Record<string, unknown>> = frame;
  for (const [name, write] of fieldWriters.get(frame.type) ?? []) {
    const value = values[name];
    if (value !== undefined) wire[name] = write === undefined ? value : write(value as never);
  }
  const body = encoder.encodeSharedRef(wire);
  const bytes = Buffer.allocUnsafe(headroom + body.length);
  bytes.set(body, headroom);
  return bytes;
}

const plainOf = (types: readonly string[]): readonly PlainField[] =>
  types.flatMap((type) => plainFrames.get(type) ?? []);

/** @returns undefined where the library and the schema have to decide */
function readPlain(frames: readonly PlainField[], bytes: Uint8Array): unknown {
  for (const frame of frames) {
    const reader = new WireReader(bytes);
    const value = frame.read(reader);
    if (value !== undefined && reader.ended) return value;
  }
  return undefined;
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function decodeOf<F extends Frame>(
  types: readonly string[],
  plainTypes: readonly PlainField[],
  bytes: Uint8Array,
): Decoded<F> {
  const plain = readPlain(plainTypes, bytes);
  if (plain !== undefined) return { ok: true, frame: plain as F };
  let value: unknown;
  try {
    value = decoder.decode(bytes);
  } catch (error) {
    if (error instanceof DecodeError || error instanceof RangeError) {
      return { ok: false, unknown: false, why: `no msgpack: ${error.message}` };
    }
    throw error;
  }
  if (!isRecord(value) || typeof value.type !== "string") {
    return { ok: false, unknown: false, why: "no map with a type" };
  }
  const { type } = value;
  if (!Object.hasOwn(frameFields, type)) {
    return { ok: false, unknown: true, why: `unknown type ${JSON.stringify(type.slice(0, 64))}` };
  }
  if (!types.includes(type)) return { ok: false, unknown: false, why: `${type} comes from the other side only` };
  const parsed = frameFields[type as FrameType].safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const place = issue === undefined || issue.path.length === 0 ? "" : `.${issue.path.join(".")}`;
    return { ok: false, unknown: false, why: `${type}${place}: ${issue?.message ?? "not valid"}` };
  }
  return { ok: true, frame: { type, ...parsed.data } as F };
}

const plainReceiverFrames = plainOf(receiverFrames);
const plainSenderFrames = plainOf(senderFrames);

/** What a receiver wrote, read by the sender. */
export const decodeReceiverFrame = (bytes: Uint8Array): Decoded<ReceiverFrame> =>
  decodeOf(receiverFrames, plainReceiverFrames, bytes);
/** What a sender wrote, read by the receiver. */
export const decodeSenderFrame = (bytes: Uint8Array): Decoded<SenderFrame> =>
  decodeOf(senderFrames, plainSenderFrames, bytes);
