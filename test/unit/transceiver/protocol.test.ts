import { encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { BlockId, CapabilityToken, Epoch, RequestId, TransferId } from "../../../src/ids.ts";
import { FrameSplitter } from "../../../src/transceiver/frame_channel.ts";
import {
  abortCodes,
  decodeReceiverFrame,
  decodeSenderFrame,
  doneStatuses,
  encodeFrame,
  FRAME_LIMIT,
  type Frame,
  frameFields,
  peerErrors,
  refuseCodes,
} from "../../../src/transceiver/protocol.ts";

const hex = <Hex extends string>(bytes: number) =>
  fc.uint8Array({ minLength: bytes, maxLength: bytes }).map((raw) => Buffer.from(raw).toString("hex") as Hex);
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const count = fc.nat();
const text = fc.string({ maxLength: 100 });
const epochs = { se: hex<Epoch>(8), re: hex<Epoch>(8) };
const transfer = { ...epochs, transferId: hex<TransferId>(20) };
const ids = fc.array(hex<TransferId>(20), { maxLength: 20 });
const layout = fc.record({
  layers: fc.integer({ min: 1, max: 200 }),
  kvHeads: fc.integer({ min: 1, max: 64 }),
  headDim: fc.integer({ min: 1, max: 256 }),
  dtype: fc.constantFrom("f32" as const, "bf16" as const),
  tokensPerBlock: fc.integer({ min: 1, max: 128 }),
  attention: fc.constantFrom("mha" as const, "gqa" as const, "mla" as const),
});
const proof = fc.oneof(bytes(0), bytes(32));
const limits = fc.record({ leaseMs: fc.integer({ min: 1, max: 100_000 }), stallMs: count });

const frames: { [Type in Frame["type"]]: fc.Arbitrary<Extract<Frame, { type: Type }>> } = {
  CHALLENGE: fc.record({
    type: fc.constant("CHALLENGE" as const),
    version: count,
    nonce: bytes(32),
    secret: fc.boolean(),
  }),
  HELLO: fc.record({
    type: fc.constant("HELLO" as const),
    ...epochs,
    version: count,
    instance: text,
    rank: count,
    layoutDigest: hex<string>(16),
    connection: count,
    live: ids,
    nonce: bytes(32),
    key: fc.constantFrom("uid", "secret", "00000000000000ff"),
    proof,
  }),
  WELCOME: fc.record({
    type: fc.constant("WELCOME" as const),
    ...epochs,
    instance: text,
    layout,
    descriptor: fc.uint8Array({ maxLength: 512 }),
    limits,
    proof,
  }),
  STALE_EPOCH: fc.oneof(
    fc.record({ type: fc.constant("STALE_EPOCH" as const), ...epochs }),
    fc.record({ type: fc.constant("STALE_EPOCH" as const), ...transfer }),
  ),
  PULL: fc.record(
    {
      type: fc.constant("PULL" as const),
      ...transfer,
      requestId: hex<RequestId>(8),
      token: hex<CapabilityToken>(16),
      from: count,
      to: count,
      reader: fc.record({ rank: count, tpSize: count, ppSize: count }),
      paths: fc.array(text, { maxLength: 4 }).map((names) => names.map((name) => name.slice(0, 64))),
    },
    // Without a token: generation-first.
    {
      requiredKeys: ["type", "se", "re", "transferId", "requestId", "from", "to", "reader", "paths"],
    },
  ),
  GRANT: fc.record({
    type: fc.constant("GRANT" as const),
    ...transfer,
    seq: count,
    leaseMs: fc.integer({ min: 1, max: 100_000 }),
    path: fc.constant("shared_memory"),
    blocks: fc.array(
      fc.integer({ min: 0, max: 0xffffffff }).map((id) => id as BlockId),
      { maxLength: 300 },
    ),
    ready: count,
  }),
  REFUSE: fc.record({
    type: fc.constant("REFUSE" as const),
    ...transfer,
    code: fc.constantFrom(...refuseCodes),
    retryAfterMs: count,
    text,
  }),
  READY: fc.record({ type: fc.constant("READY" as const), ...transfer, tokens: count }),
  FINISHED: fc.record(
    {
      type: fc.constant("FINISHED" as const),
      ...transfer,
      tokens: count,
      firstTokens: fc.array(count, { minLength: 1, maxLength: 64 }),
      firstLogProbs: fc.array(
        fc.record({ logprob: fc.double({ noNaN: true, noDefaultInfinity: true }).filter((n) => !Object.is(n, -0)) }),
        { maxLength: 4 },
      ),
      cachedTokens: count,
    },
    { requiredKeys: ["type", "se", "re", "transferId", "tokens", "firstTokens"] },
  ),
  RENEW: fc.record({ type: fc.constant("RENEW" as const), ...epochs, seq: count, ids }),
  RENEWED: fc.record({ type: fc.constant("RENEWED" as const), ...epochs, seq: count, ids, waiting: ids }),
  DONE: fc.record({
    type: fc.constant("DONE" as const),
    ...transfer,
    status: fc.constantFrom(...doneStatuses),
    bytes: count,
  }),
  ABORT: fc.record({ type: fc.constant("ABORT" as const), ...transfer, code: fc.constantFrom(...abortCodes), text }),
  PING: fc.record({ type: fc.constant("PING" as const), ...epochs, n: count }),
  PONG: fc.record({ type: fc.constant("PONG" as const), ...epochs, n: count }),
  ERROR: fc.record({ type: fc.constant("ERROR" as const), code: fc.constantFrom(...peerErrors), text }),
};
const anyFrame: fc.Arbitrary<Frame> = fc.oneof(...(Object.values(frames) as fc.Arbitrary<Frame>[]));

const plain = (value: unknown): unknown =>
  JSON.parse(
    JSON.stringify(value, (_, inner) => (inner instanceof Uint8Array ? Buffer.from(inner).toString("hex") : inner)),
  );
const decodeEither = (raw: Uint8Array) => {
  const asReceiver = decodeReceiverFrame(raw);
  return asReceiver.ok ? asReceiver : decodeSenderFrame(raw);
};

describe("control frames", () => {
  it("are all tried here", () => {
    expect(Object.keys(frames).sort()).toEqual(Object.keys(frameFields).sort());
  });

  it("read as what was written", () => {
    fc.assert(
      fc.property(anyFrame, (frame) => {
        const decoded = decodeEither(Uint8Array.from(encodeFrame(frame)));
        expect(decoded.ok && plain(decoded.frame)).toEqual(plain(frame));
      }),
      { numRuns: 500 },
    );
  });

  it("never throw, whatever the bytes are", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (raw) => {
        expect(decodeEither(raw).ok).toBe(false);
      }),
      { numRuns: 2000 },
    );
    fc.assert(
      fc.property(anyFrame, fc.nat(), fc.integer({ min: 0, max: 255 }), (frame, place, value) => {
        const raw = encodeFrame(frame);
        raw[place % raw.length] = value;
        decodeEither(raw);
      }),
      { numRuns: 2000 },
    );
  });

  it("drop fields that they do not know, and name a field that is wrong", () => {
    const ping = { type: "PING", se: new Uint8Array(8), re: new Uint8Array(8), n: 4, later: { x: 1 } };
    expect(decodeReceiverFrame(encode(ping))).toEqual({
      ok: true,
      frame: { type: "PING", se: "0".repeat(16), re: "0".repeat(16), n: 4 },
    });
    expect(decodeReceiverFrame(encode({ ...ping, se: new Uint8Array(7) }))).toMatchObject({
      ok: false,
      unknown: false,
      why: "PING.se: must be 8 bytes",
    });
    expect(decodeReceiverFrame(encode({ ...ping, n: -1 }))).toMatchObject({ ok: false, unknown: false });
    expect(decodeReceiverFrame(encode({ ...ping, type: "TELEPORT" }))).toMatchObject({ ok: false, unknown: true });
    expect(decodeReceiverFrame(encode({ ...ping, type: "constructor" }))).toMatchObject({ ok: false, unknown: true });
  });

  it("are refused from the side that never writes them", () => {
    const ready = encodeFrame({
      type: "READY",
      se: "0".repeat(16) as Epoch,
      re: "0".repeat(16) as Epoch,
      transferId: "0".repeat(40) as TransferId,
      tokens: 1,
    });
    expect(decodeReceiverFrame(ready)).toMatchObject({ ok: false, unknown: false });
    expect(decodeSenderFrame(ready).ok).toBe(true);
  });

  it("read an enum value of a later version as its mildest meaning", () => {
    const done = {
      type: "DONE",
      se: new Uint8Array(8),
      re: new Uint8Array(8),
      transferId: new Uint8Array(20),
      bytes: 0,
    };
    expect(decodeReceiverFrame(encode({ ...done, status: "vanished" }))).toMatchObject({ frame: { status: "failed" } });
  });
});

describe("the frame splitter", () => {
  const prefixed = (body: Uint8Array): Buffer => {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(body.length);
    return Buffer.concat([head, body]);
  };

  it("cuts a stream into the same frames however it arrives", () => {
    const body = fc.uint8Array({ minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(fc.array(body, { maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 40 })), (bodies, sizes) => {
        const stream = Buffer.concat(bodies.map(prefixed));
        const splitter = new FrameSplitter();
        const got: Uint8Array[] = [];
        for (let at = 0, turn = 0; at < stream.length; turn++) {
          const size = sizes[turn % Math.max(1, sizes.length)] ?? stream.length;
          const frames = splitter.push(stream.subarray(at, at + size), FRAME_LIMIT);
          if (typeof frames === "string") throw new Error(frames);
          got.push(...frames);
          at += size;
        }
        expect(got.map((frame) => Buffer.from(frame).toString("hex"))).toEqual(
          bodies.map((frame) => Buffer.from(frame).toString("hex")),
        );
        expect(splitter.buffered).toBe(0);
      }),
    );
  });

  it("refuses a frame over the limit by its prefix alone, and an empty one", () => {
    const prefix = Buffer.alloc(4);
    prefix.writeUInt32BE(FRAME_LIMIT + 1);
    expect(new FrameSplitter().push(prefix, FRAME_LIMIT)).toBe("a frame of 1048577 bytes, the limit is 1048576");
    expect(new FrameSplitter().push(Buffer.alloc(4), FRAME_LIMIT)).toMatch(/a frame of 0 bytes/);
  });
});
