import { expect, it } from "vitest";
import { newEpoch } from "../../../src/ids.ts";
import { nativeLayoutOf } from "../../../src/kv/placement.ts";
import { loadNative } from "../../../src/native/loader.ts";
import { NativePlane } from "../../../src/transceiver/native_plane.ts";

const COUNT = 2_000;

function open(): Promise<NativePlane> {
  const shape = { layers: 1, kvHeads: 1, headDim: 16, dtype: "f32", tokensPerBlock: 4, attention: "gqa" } as const;
  const layout = nativeLayoutOf(shape, { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 }, {});
  return NativePlane.open(loadNative(), { layout, blocks: 16, epoch: newEpoch(), check: false });
}

function work(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

it("a burst of completions leaves the event loop its turns, and keeps its order", async () => {
  const plane = await open();
  plane.hold();
  const seen: number[] = [];
  let turns = 0;
  let watching = true;
  const watch = (): void => {
    turns++;
    if (watching) setImmediate(watch);
  };
  const all = new Promise<void>((resolve) => {
    for (let index = 0; index < COUNT; index++) {
      plane.renew([], () => {
        if (index === 0) setImmediate(watch);
        work(0.05);
        seen.push(index);
        if (index === COUNT - 1) resolve();
      });
    }
    // All have completed before the first is read.
    work(50);
  });
  await all;
  watching = false;
  expect(seen).toEqual(Array.from({ length: COUNT }, (_, index) => index));
  // 100 ms of work, half a millisecond a turn.
  expect(turns).toBeGreaterThan(50);
  plane.letGo();
  await plane.close();
});

it("closing in the middle of a burst delivers what had completed, and only then is over", async () => {
  const plane = await open();
  plane.hold();
  let seen = 0;
  let closed: Promise<void> | undefined;
  for (let index = 0; index < COUNT; index++) {
    plane.renew([], () => {
      work(0.02);
      seen++;
      closed ??= plane.close();
    });
  }
  work(50);
  await new Promise<void>((resolve) => {
    const look = (): void => {
      if (closed === undefined) setImmediate(look);
      else resolve();
    };
    look();
  });
  await closed;
  expect(seen).toBe(COUNT);
});
