import { afterAll, describe, expect, it, test } from "vitest";
import { Layout } from "../../../src/layout.ts";
import { hasPython } from "./foreign_memory.mjs";
import { adoptedLayout, adoptedPools, hybrid, kinds, sharedPages } from "./layout_kinds.ts";
import { Peers } from "./peer_process.ts";
import { moveAll, PlacedPeer } from "./placed_peer.ts";

const peers = new Peers();
const { socketDir } = peers;
const [context, generation] = [peers.start("placed_entry.mjs"), peers.start("placed_entry.mjs")];
afterAll(() => peers[Symbol.asyncDispose]());

async function closeAll(all: readonly PlacedPeer[]): Promise<void> {
  for (const one of all) await one.expectIdle();
  await Promise.all(all.map((one) => one.close()));
}

describe.each(Object.entries(kinds))("%s", (_name, { layout, shapes, keeps = null }) => {
  it("crosses from process to process, into every rank of instances of any shape and order", async () => {
    const open = (peer: typeof context) =>
      Promise.all(shapes.map((shape) => PlacedPeer.spread(peer, layout, shape, socketDir)));
    const [from, to] = await Promise.all([open(context), open(generation)]);
    for (const sender of from) for (const receiver of to) await moveAll(sender, receiver, { keeps });
    await closeAll([...from, ...to]);
  });
});

it("every dtype is among them", () => {
  const seen = Object.values(kinds).map(({ layout }) => layout.dtype);
  expect(new Set(seen)).toEqual(new Set(Layout.shape.dtype.options));
});

describe.skipIf(!hasPython)("an adopted pool of", () => {
  test.each(Object.entries(adoptedPools))("%s is read and written in place by another process", async (_name, pool) => {
    const own = { ...adoptedLayout, tokensPerBlock: undefined };
    const adopted = await PlacedPeer.adopted(context, adoptedLayout, pool, socketDir);
    const others = await Promise.all([
      PlacedPeer.adopted(generation, adoptedLayout, pool, socketDir),
      PlacedPeer.spread(generation, own, [1, 1, 8, "HND"], socketDir),
      PlacedPeer.spread(generation, own, [2, [1, 3], 16, "NHD"], socketDir),
    ]);
    for (const other of others) {
      await moveAll(adopted, other);
      await moveAll(other, adopted);
    }
    await closeAll([adopted, ...others]);
  });
});

it.skipIf(!hasPython)(
  "pages that full layers and those with a window share, with a block table for each kind, arrive in another process's",
  async () => {
    const [here, there] = await Promise.all(
      [context, generation].map((peer) => PlacedPeer.adopted(peer, hybrid.layout, sharedPages, socketDir)),
    );
    const both = [here, there] as [PlacedPeer, PlacedPeer];
    await moveAll(both[0], both[1], hybrid);
    await moveAll(both[1], both[0], hybrid);
    await closeAll(both);
  },
);
