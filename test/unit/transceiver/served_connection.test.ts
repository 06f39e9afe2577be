import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import { beforeEach, describe, expect, it } from "vitest";
import { type Epoch, newEpoch, newTransferId, requestId } from "../../../src/ids.ts";
import type { Layout } from "../../../src/kv/layout.ts";
import { FrameSplitter } from "../../../src/transceiver/frame_channel.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import { layoutDigest } from "../../../src/transceiver/proof.ts";
import {
  decodeSenderFrame,
  encodeFrame,
  PROTOCOL_VERSION,
  type SenderFrame,
} from "../../../src/transceiver/protocol.ts";
import { Receivers } from "../../../src/transceiver/receivers.ts";
import { ServedConnection } from "../../../src/transceiver/served_connection.ts";
import { type OffersRig, offersRig } from "./offers_rig.ts";

const layout: Layout = { layers: 1, kvHeads: 1, headDim: 1, dtype: "f32", tokensPerBlock: 32, attention: "gqa" };
const TOKENS = 100;
const epoch = newEpoch();
const receiver = newEpoch();

/** What FrameChannel writes, as frames. */
class Written extends EventEmitter {
  readonly #splitter = new FrameSplitter();
  readonly frames: SenderFrame[] = [];
  readonly writableLength = 0;
  destroyed = false;

  write(bytes: Uint8Array): boolean {
    const frames = this.#splitter.push(bytes, 1 << 20);
    if (typeof frames === "string") throw new Error(frames);
    for (const frame of frames) {
      const decoded = decodeSenderFrame(frame);
      if (decoded.ok) this.frames.push(decoded.frame);
    }
    return true;
  }

  setNoDelay(): void {}
  unref(): void {}
  end(): void {}
  destroy(): void {
    this.destroyed = true;
  }
}

let rig: OffersRig;
let receivers: Receivers;
let offer: Offer;

beforeEach(() => {
  receivers = new Receivers();
  rig = offersRig(epoch, {
    limits: { leaseMs: 1000, transferMs: null, offerMs: 3000 },
    maxOpen: 4,
    write: (to, frame) => receivers.write(to, frame),
  });
  offer = rig.offer(TOKENS, TOKENS);
});

/** A connection of the one receiver over the unix socket, after its HELLO. */
function connect(number: number, se: Epoch) {
  const socket = new Written();
  const { plane, offers } = rig;
  const digest = layoutDigest(layout);
  const context = {
    plane,
    epoch,
    instance: "context",
    layout,
    layoutDigest: digest,
    limits: { leaseMs: 1000, stallMs: 2000 },
    secret: undefined,
    offers,
    receivers,
    readersOf: () => [0],
    countDropped: () => {},
  };
  const connection = new ServedConnection(context, socket as unknown as Socket, true, {
    proven: () => {},
    closed: () => {},
  });
  const head = { se, re: receiver, version: PROTOCOL_VERSION, instance: "generation", rank: 0, layoutDigest: digest };
  const proof = { nonce: new Uint8Array(32), key: "uid", proof: new Uint8Array(0) };
  connection.frame(encodeFrame({ type: "HELLO", ...head, connection: number, live: [], ...proof }));
  return { connection, socket };
}

describe("the HELLO of a receiver", () => {
  const pulled = () => {
    const first = connect(1, epoch);
    const pull = {
      type: "PULL",
      se: epoch,
      re: receiver,
      transferId: newTransferId(),
      requestId: requestId(1),
    } as const;
    const range = { from: 0, to: TOKENS, reader: { rank: 0, tpSize: 1, ppSize: 1 }, paths: ["shared_memory"] };
    first.connection.frame(encodeFrame({ ...pull, token: offer.token, ...range }));
    expect(offer.leased).toBe(true);
    return first;
  };

  it("ends what it does not name", () => {
    pulled();
    connect(2, epoch);
    expect(offer.leased).toBe(false);
  });

  it("is answered with this epoch when it is meant for an earlier start of this side, and ends nothing", async () => {
    const first = pulled();
    const second = connect(2, newEpoch());
    await Promise.resolve();
    expect(second.socket.frames.at(-1)).toMatchObject({ type: "WELCOME", se: epoch });
    expect(offer.leased).toBe(true);
    offer.cancel("test");
    await Promise.resolve();
    expect(first.socket.destroyed).toBe(false);
    expect(first.socket.frames.at(-1)).toMatchObject({ type: "ABORT" });
  });
});
