import { type CapabilityToken, newEpoch, newToken, newTransferId } from "../../src/ids.ts";
import { handshake } from "../../src/transceiver/dial.ts";
import type { ChannelListener, FrameChannel } from "../../src/transceiver/frame_channel.ts";
import { layoutDigest } from "../../src/transceiver/proof.ts";
import { decodeSenderFrame, type FrameOf, type ReceiverFrame } from "../../src/transceiver/protocol.ts";
import type { StrangerDecision } from "./plan.ts";
import { foreignLayout, layout, SimProcess } from "./process.ts";
import type { Sending } from "./transfers.ts";
import type { World } from "./world.ts";

/** Frames that it writes, with a pause before each. */
const FRAMES = 4;

/**
 * Somebody at the control port who may have nothing: I6 and I7. It speaks the protocol, knows all ids, and lacks or lies about one thing.
 * Whatever it writes moves no session, and it never gets a grant.
 */
export function intrude(world: World, { trick }: StrangerDecision, target: SimProcess, number: number): void {
  if (target.dead || world.isCalm) return;
  const foreign = trick.includes("foreign layout");
  if (foreign && target.seat.layout === foreignLayout) return;
  const seat = {
    address: `tcp://stranger-${number}:1`,
    instance: `stranger-${number}`,
    rank: trick.includes("wrong rank") ? 9 : 0,
    ranks: 1,
    layout: foreign ? foreignLayout : layout,
    rateError: 0,
  };
  const stranger = new SimProcess(world, `stranger#${number}`, seat);
  world.strangers.add(stranger);
  world.trace(() => `stranger: ${trick} at ${target.name}`);
  const { noise, plane, epoch } = stranger;
  const { limits, delays, time } = world;
  const known = (): Sending | undefined => {
    const all = world.transfers.all.flatMap(({ sendings }) => sendings).filter(({ process }) => process === target);
    return all[Math.floor(noise.unit() * all.length)];
  };
  const refused = (what: string): void => world.broken(`I7: a stranger (${trick}) got ${what} of ${target.name}`);
  const proves = trick !== "no proof";
  const offer = known();
  const local = proves && world.plan.proof === "uid";
  void handshake(
    {
      plane,
      identity: {
        epoch,
        instance: stranger.name,
        rank: seat.rank,
        layoutDigest: layoutDigest(seat.layout),
        secret: world.plan.proof === "secret" && proves ? world.secret : undefined,
        ca: undefined,
        socketDir: undefined,
      },
      target: { name: target.name, epoch: target.epoch, tcp: target.seat.address, unix: null },
      timeoutMs: limits.leaseMs,
      connection: 1,
      live: [],
      offer:
        offer === undefined
          ? undefined
          : { requestId: offer.transfer.request, token: proves ? offer.offer.token : newToken() },
      welcomed: (channel, welcome) => {
        if (!proves) refused("a welcome");
        if (foreign && welcome.descriptor.length > 0) refused("a descriptor");
        for (let frame = 1; frame <= FRAMES; frame++) {
          stranger.later(frame * noise.delay(delays.network * 4), () => {
            const sending = known();
            for (const lie of lies(world, stranger, target, trick, sending)) channel.send(lie);
          });
        }
        time.after(limits.leaseMs * 2, () => channel.close("it has seen enough"));
        return listenerOf(channel, refused);
      },
    },
    stranger.connect(target, local).asSocket,
    local ? "unix" : "tcp",
  );
}

function listenerOf(_channel: FrameChannel, refused: (what: string) => void): ChannelListener {
  return {
    frame: (bytes) => {
      const decoded = decodeSenderFrame(bytes);
      if (!decoded.ok) return;
      const { frame } = decoded;
      if (frame.type === "GRANT" || frame.type === "READY" || frame.type === "FINISHED") refused(frame.type);
      if (frame.type === "RENEWED" && frame.ids.length > 0) refused("a lease");
    },
    closed: () => {},
  };
}

function lies(
  world: World,
  stranger: SimProcess,
  target: SimProcess,
  trick: StrangerDecision["trick"],
  sending: Sending | undefined,
): ReceiverFrame[] {
  const head = { se: target.epoch, re: stranger.epoch };
  const pull = (token: CapabilityToken | undefined, changed: Partial<FrameOf<"PULL">> = {}): FrameOf<"PULL"> => ({
    type: "PULL",
    ...head,
    transferId: newTransferId(),
    requestId: sending?.transfer.request ?? ("00000000000000ff" as FrameOf<"PULL">["requestId"]),
    ...(token === undefined ? {} : { token }),
    from: 0,
    to: sending?.offer.tokens ?? 1,
    reader: { rank: stranger.seat.rank, tpSize: 1, ppSize: 1 },
    paths: ["shared_memory"],
    ...changed,
  });
  const token = sending?.offer.token ?? newToken();
  switch (trick) {
    case "no proof":
      return [pull(token)];
    case "wrong token":
      return [pull(newToken())];
    case "wrong rank":
    case "foreign layout":
      return [pull(token)];
    case "no token, foreign layout":
    case "no token, wrong rank": {
      // Also of one that waits for its offer.
      const waiting = world.transfers.pulls.find(({ session }) => session.state === "PULL");
      const requestId = waiting?.transfer.request;
      return [pull(undefined, requestId === undefined ? {} : { requestId })];
    }
    case "old epoch":
      return [pull(token, { se: newEpoch() })];
    case "another's frames":
    case "another's epoch": {
      const ids = world.transfers.pulls.flatMap(({ session }) => session.live ?? []);
      const re = trick === "another's epoch" ? world.transfers.pulls[0]?.process.epoch : undefined;
      const lied = { ...head, ...(re === undefined ? {} : { re }) };
      return [
        { type: "RENEW", ...lied, seq: 1_000_000, ids },
        ...ids.map((transferId): ReceiverFrame => ({ type: "DONE", ...lied, transferId, status: "ok", bytes: 0 })),
      ];
    }
  }
}
