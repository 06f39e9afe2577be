import { expect, it } from "vitest";
import { newEpoch } from "../../../src/ids.ts";
import { loadNative } from "../../../src/native/loader.ts";
import { NativePlane } from "../../../src/transceiver/native_plane.ts";

const COUNT = 2_000;

function open(): Promise<NativePlane> {
  const layout = { layers: 1, planes: 2, heads: 1, tokensPerBlock: 4, headBytes: 64 };
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
