import { describe, expect, it } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { newEpoch, newToken, requestId } from "../../../src/ids.ts";
import { Layout } from "../../../src/kv/layout.ts";
import type { DialFailure, DialTarget } from "../../../src/transceiver/dial.ts";
import type { LinkUser } from "../../../src/transceiver/link_user.ts";
import { PeerLink } from "../../../src/transceiver/peer_link.ts";
import { VirtualPlane } from "./virtual_plane.ts";

const layout = Layout.parse({ layers: 2, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" });
const target: DialTarget = { name: "context", epoch: newEpoch(), tcp: "tcp://127.0.0.1:1", unix: null };
const unreachable: DialFailure = {
  error: new KvError("PEER_UNREACHABLE", { peer: "context", why: "test" }),
  refused: false,
};
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A link whose dials the test lets fail, and users that note when they are told so. */
function linkOf() {
  const plane = new VirtualPlane();
  const dials: (() => void)[] = [];
  let numbers = 0;
  const link = new PeerLink(target, {
    plane,
    layout,
    identity: {
      epoch: newEpoch(),
      instance: "generation",
      rank: 0,
      layoutDigest: "",
      secret: undefined,
      ca: undefined,
      socketDir: undefined,
    },
    dial: () => new Promise((resolve) => dials.push(() => resolve(unreachable))),
    ownLeaseMs: 1_000,
    countDropped: () => {},
    nextConnection: () => ++numbers,
    nextSeq: () => ++numbers,
    welcomed: () => {},
    unused: () => {},
  });
  const failed: string[] = [];
  const join = (name: string): void => {
    const nothing = () => {};
    const user: LinkUser = {
      offer: { requestId: requestId(1), token: newToken() },
      renewing: null,
      live: null,
      linkFailed: () => {
        failed.push(name);
        link.leave(user);
      },
      linkUp: nothing,
      linkLost: nothing,
      staleEpoch: nothing,
      senderDead: nothing,
      granted: nothing,
      refused: nothing,
      ready: nothing,
      finished: nothing,
      aborted: nothing,
      renewed: nothing,
      leaseLost: nothing,
      tick: nothing,
    };
    link.join(user);
  };
  /** The try that runs fails, and the pause before the next passes. */
  const failOne = async (): Promise<void> => {
    dials.shift()?.();
    await settled();
    plane.advance(200);
    await settled();
  };
  return { join, failOne, failed, dials };
}

describe("a dial of a link", () => {
  it("fails a user after three tries", async () => {
    const { join, failOne, failed, dials } = linkOf();
    join("first");
    for (let tries = 0; tries < 3; tries++) {
      expect([failed, dials.length]).toEqual([[], 1]);
      await failOne();
    }
    expect([failed, dials.length]).toEqual([["first"], 0]);
  });

  it("gives a user that joins it all its tries, and makes those that were there before wait for none of them", async () => {
    const { join, failOne, failed, dials } = linkOf();
    join("first");
    await failOne();
    await failOne();
    join("second");
    await failOne();
    expect([failed, dials.length]).toEqual([["first"], 1]);
    await failOne();
    expect([failed, dials.length]).toEqual([["first"], 1]);
    await failOne();
    expect([failed, dials.length]).toEqual([["first", "second"], 0]);
    join("third");
    expect(dials.length).toBe(1);
  });
});
