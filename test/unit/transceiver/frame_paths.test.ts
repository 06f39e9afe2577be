import { decode, encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { expect, it } from "vitest";
import {
  decodeReceiverFrame,
  decodeSenderFrame,
  encodeFrame,
  type Frame,
  frameFields,
} from "../../../src/transceiver/protocol.ts";

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
/** Mostly what belongs there, sometimes not: both ways of reading a frame must judge it alike. */
const spoilt = <Value>(good: fc.Arbitrary<Value>) =>
  fc.oneof(
    { weight: 30, arbitrary: good as fc.Arbitrary<unknown> },
    {
      weight: 1,
      arbitrary: fc.oneof(
        fc.constant(undefined),
        fc.constant(null),
        fc.double(),
        fc.string(),
        bytes(3),
        fc.constant(-1),
      ),
    },
  );
const count = spoilt(fc.oneof(fc.nat(), fc.nat(300), fc.maxSafeNat()));
const transfer = { se: spoilt(bytes(8)), re: spoilt(bytes(8)), transferId: spoilt(bytes(20)) };
const frames = {
  PULL: fc.record({
    ...transfer,
    requestId: spoilt(bytes(8)),
    token: spoilt(bytes(16)),
    from: count,
    to: count,
    reader: spoilt(fc.record({ rank: fc.nat(), tpSize: fc.nat(), ppSize: fc.nat() })),
    verify: fc.option(spoilt(fc.constantFrom("off", "sampled", "full", "later_word")), { nil: undefined }),
    paths: spoilt(fc.array(fc.string({ maxLength: 70 }), { maxLength: 17 })),
  }),
  GRANT: fc.record({
    ...transfer,
    seq: count,
    leaseMs: spoilt(fc.double({ min: 0, max: 1e10 })),
    path: spoilt(fc.string({ maxLength: 70 })),
    blocks: spoilt(fc.uint8Array({ maxLength: 40 })),
    ready: count,
  }),
  READY: fc.record({
    ...transfer,
    tokens: count,
    digestsFrom: fc.option(count, { nil: undefined }),
    digests: fc.option(spoilt(fc.uint8Array({ maxLength: 300 })), { nil: undefined }),
  }),
  DONE: fc.record({ ...transfer, status: spoilt(fc.constantFrom("ok", "cancelled", "later_word")), bytes: count }),
};

for (const [type, fields] of Object.entries(frames)) {
  it(`a ${type} is read as its schema says, whatever it holds, and is written back to the same bytes`, () => {
    fc.assert(
      fc.property(fields, fc.boolean(), (record, newer) => {
        // As this version writes it: absent fields are left out. A newer one may add some.
        const present = Object.entries(record).filter(([, value]) => value !== undefined);
        const raw = encode({ type, ...Object.fromEntries(present), ...(newer ? { unknownField: 1 } : {}) });
        const wanted = frameFields[type as keyof typeof frames].safeParse(decode(raw));
        const got = type === "PULL" || type === "DONE" ? decodeReceiverFrame(raw) : decodeSenderFrame(raw);
        expect(got.ok).toBe(wanted.success);
        if (!got.ok || !wanted.success) return;
        expect(got.frame).toEqual({ type, ...wanted.data });
        const again = encodeFrame(got.frame as Frame);
        const reread = type === "PULL" || type === "DONE" ? decodeReceiverFrame(again) : decodeSenderFrame(again);
        expect(reread).toEqual(got);
      }),
      { numRuns: 500 },
    );
  });
}
