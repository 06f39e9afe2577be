import { setImmediate as turn } from "node:timers/promises";
import v8 from "node:v8";
import vm from "node:vm";
import { describe, expect, it } from "vitest";
import { newEpoch } from "../../../src/ids.ts";
import type { EndedSend } from "../../../src/transceiver/api.ts";
import { EndedSends } from "../../../src/transceiver/ended_sends.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import { offersRig } from "./offers_rig.ts";
import { VirtualPlane } from "./virtual_plane.ts";

/** Whoever gives an offer up, with what only it needs. */
class Request {
  readonly prompt = new Array(100_000).fill(7);

  giveUp(offer: Offer): void {
    offer.cancel("its client left");
  }
}

async function collected(reference: WeakRef<object>): Promise<boolean> {
  v8.setFlagsFromString("--expose-gc");
  const collect = vm.runInNewContext("gc") as () => void;
  for (let round = 0; round < 5 && reference.deref() !== undefined; round++) {
    await turn();
    collect();
  }
  return reference.deref() === undefined;
}

describe("an offer that has ended", () => {
  it("is remembered without whoever ended it", async () => {
    const kept: unknown[] = [];
    const limits = { leaseMs: 1_000, transferMs: null, offerMs: 3_000 };
    const rig = offersRig(newEpoch(), {
      limits,
      maxOpen: 4,
      write: () => true,
      ended: (offer, _report, error) => kept.push(offer, error),
    });
    const leave = (): WeakRef<object> => {
      const request = new Request();
      request.giveUp(rig.offer(100, 100));
      return new WeakRef(request);
    };
    expect(await collected(leave())).toBe(true);
    expect(kept).toMatchObject([{}, { code: "CANCELLED" }]);
  });

  it("is forgotten by waitForSenders when a thousand later ones were not asked for", async () => {
    const sends = new EndedSends(new VirtualPlane(), 1_000);
    for (let number = 0; number < 1_500; number++) sends.add({ requestId: String(number) } as EndedSend);
    const handed = await sends.wait(1, () => 0);
    expect([handed.length, handed[0]?.requestId]).toEqual([1024, "476"]);
  });
});
