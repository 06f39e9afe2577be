import { decode, encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { expect, it } from "vitest";
import { isKvError } from "../../../src/errors.ts";
import { decodeState, State } from "../../../src/transceiver/opaque_state.ts";

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const spoilt = <Value>(good: fc.Arbitrary<Value>) =>
  fc.oneof(
    { weight: 40, arbitrary: good as fc.Arbitrary<unknown> },
    {
      weight: 1,
      arbitrary: fc.constantFrom<unknown>(undefined, null, -1, 0, 1.5, "", "x".repeat(1025), [], {}, true),
    },
  );
const layout = fc.oneof(
  // Often the same one again: the layout of the state before is remembered.
  fc.constant({ layers: 2, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" }),
  fc.record(
    {
      layers: spoilt(fc.constantFrom(2, 3)),
      kvHeads: spoilt(fc.constant(2)),
      headDim: spoilt(fc.constant(16)),
      dtype: spoilt(fc.constantFrom("f32", "bf16", "f33")),
      tokensPerBlock: spoilt(fc.constant(32)),
      attention: spoilt(fc.constantFrom("gqa", "mla")),
      stranger: fc.constant(1),
    },
    { requiredKeys: ["layers", "kvHeads", "headDim", "dtype"] },
  ),
);
const rank = fc.record(
  {
    rank: spoilt(fc.nat()),
    epoch: spoilt(bytes(8)),
    tcp: spoilt(fc.constant("tcp://127.0.0.1:1")),
    unix: spoilt(fc.constantFrom(null, "/tmp/a.sock", "/tmp/ä.sock")),
    token: spoilt(bytes(16)),
    stranger: fc.constant(1),
  },
  { requiredKeys: ["rank", "epoch", "tcp", "unix", "token"] },
);
const state = fc.record({
  version: spoilt(fc.constant(1)),
  instance: spoilt(fc.constant("a")),
  layout: spoilt(layout),
  tpSize: spoilt(fc.constantFrom(1, 2, 1024)),
  ppSize: spoilt(fc.constantFrom(1, 2)),
  requestId: spoilt(bytes(8)),
  tokens: spoilt(fc.integer({ min: 1, max: 1e6 })),
  ranks: spoilt(fc.array(spoilt(rank), { minLength: 1, maxLength: 17 })),
});

it("a state is read as its schema says, whatever it holds", () => {
  fc.assert(
    fc.property(state, (record) => {
      const raw = encode(record);
      const wanted = State.safeParse(decode(raw));
      const read = () => decodeState(Buffer.from(raw).toString("base64"));
      if (!wanted.success) {
        expect(read).toThrow(expect.toSatisfy((error: unknown) => isKvError(error) && error.code === "BAD_STATE"));
        return;
      }
      const { version: _version, ...fields } = wanted.data;
      expect(read()).toEqual(fields);
    }),
    { numRuns: 1500 },
  );
});
