import { expect, it } from "vitest";
import type { BlockId } from "../../../src/ids.ts";
import { loadNative } from "../../../src/native/loader.ts";
import { NativePlane } from "../../../src/transceiver/native_plane.ts";
import { nativeLayout as layout } from "./peer.ts";

it("a checked pool whose plane closes takes blocks back and gives them out: nothing looks into memory that is gone", async () => {
  const plane = await NativePlane.open(loadNative(), { layout, blocks: 8, epoch: "00000000000000aa", check: true });
  const block = 3 as BlockId;
  plane.fillReleased([block]);
  expect(plane.findTouched([block])).toBeUndefined();
  const closing = plane.close();
  plane.fillReleased([block]);
  await closing;
  plane.fillReleased([block]);
  expect(plane.findTouched([block])).toBeUndefined();
});
