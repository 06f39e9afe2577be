import { expect, it } from "vitest";
import { TransferTimes } from "../../../src/transceiver/transfer_times.ts";

it("every millisecond of a pull belongs to one phase, also when it comes back to one", () => {
  const times = new TransferTimes(100);
  times.enter("connect", 101);
  times.enter("wait", 103);
  times.enter("move", 107);
  times.enter("move", 109);
  times.enter("wait", 115);
  times.enter("ended", 131);
  const parts = (["queue", "connect", "wait", "move"] as const).map((phase) => times.get(phase));
  expect(parts).toEqual([1, 2, 4 + 16, 8]);
});
