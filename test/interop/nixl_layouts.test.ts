import { afterAll, beforeAll, beforeEach, describe, it } from "vitest";
import { hasPython } from "../integration/transceiver/foreign_memory.mjs";
import type { Shape } from "../integration/transceiver/instance_shapes.ts";
import { adoptedLayout, adoptedPools, hybrid, kinds, sharedPages } from "../integration/transceiver/layout_kinds.ts";
import { type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { type Keeps, moveAll, PlacedPeer } from "../integration/transceiver/placed_peer.ts";
import { nixlCases, setEnvironment } from "./nixl_wheel.ts";

/** Each rank has a NIXL agent: these are few, and unequal in all that may be. */
const one: Shape = [1, 1, 8, "HND"];
const two: Shape = [2, 1, 16, "NHD"];

const cases = nixlCases().filter(({ name }) => name.endsWith("shared memory"));

describe.each(cases)("layouts over $name", ({ env, missing }) => {
  const path = env.KVT_PATH as string;
  const peers = new Peers();
  const { socketDir } = peers;
  let context: Peer;
  let generation: Peer;
  beforeAll(() => {
    if (missing !== undefined) return;
    const restore = setEnvironment(env);
    [context, generation] = [peers.start("placed_entry.mjs"), peers.start("placed_entry.mjs")];
    restore();
  });
  afterAll(() => peers[Symbol.asyncDispose]());
  beforeEach(({ skip }) => {
    if (missing !== undefined) skip(missing);
  });

  async function moveBothWays(here: PlacedPeer, there: PlacedPeer, keeps: Keeps = null): Promise<void> {
    await moveAll(here, there, { keeps, path });
    await moveAll(there, here, { keeps, path });
    for (const side of [here, there]) {
      await side.expectIdle();
      await side.close();
    }
  }

  it.each(Object.entries(kinds))("%s: every byte arrives, and no other is touched", async (_, kind) => {
    const { layout, keeps = null, shapes } = kind;
    const [left, right] = kind.shapes.some(([, , size]) => size !== 8) ? [one, two] : [shapes[0], shapes[1]];
    await moveBothWays(
      await PlacedPeer.spread(context, layout, left as Shape, socketDir),
      await PlacedPeer.spread(generation, layout, right as Shape, socketDir),
      keeps,
    );
  });

  it.skipIf(!hasPython).each(Object.entries(adoptedPools))(
    "a pool of %s is read and written in place",
    async (_, pool) => {
      await moveBothWays(
        await PlacedPeer.adopted(context, adoptedLayout, pool, socketDir),
        await PlacedPeer.adopted(generation, adoptedLayout, pool, socketDir),
      );
    },
  );

  it.skipIf(!hasPython)(
    "pages that full layers and those with a window share have a block table for each kind",
    async () => {
      await moveBothWays(
        await PlacedPeer.adopted(context, hybrid.layout, sharedPages, socketDir),
        await PlacedPeer.adopted(generation, hybrid.layout, sharedPages, socketDir),
        hybrid.keeps,
      );
    },
  );
});
