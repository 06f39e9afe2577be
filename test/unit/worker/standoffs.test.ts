import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { KvError } from "../../../src/errors.ts";
import { type RequestId, requestId } from "../../../src/ids.ts";
import type { RequestRole, WorkerRequest } from "../../../src/worker/request.ts";
import { LocalTransfers } from "./local_transfers.ts";
import { type Rig, rig, spec, tokensOf } from "./scheduler_rig.ts";
import { TokenEngine } from "./token_engine.ts";

/** Each request needs 6 of the 10 blocks, on both sides. */
const BLOCKS = 10;
const PROMPT = 21;
const OUTPUT = 4;
const GIVE_WAY_MS = 1_000;
const outcomeOf = ({ done }: WorkerRequest): Promise<string> =>
  done.then(
    () => "done",
    ({ code }: KvError) => code,
  );

describe("requests of two workers whose blocks wait for each other's", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] }));
  afterEach(() => void vi.useRealTimers());

  const transfers = new LocalTransfers();
  const worker = (): Rig =>
    rig({
      blocks: BLOCKS,
      reusePrefixes: false,
      limits: { giveWayMs: GIVE_WAY_MS, queueTimeoutMs: 60_000, offerMs: 60_000 },
      transfers: transfers.port.bind(transfers),
    });
  const promptOf = (id: RequestId): number[] => tokensOf(PROMPT, Number.parseInt(id, 16));
  const prefill = async (at: Rig, id: RequestId): Promise<RequestRole> => {
    const { offer, firstToken } = await at.scheduler.submit(
      spec(promptOf(id), OUTPUT, { role: { kind: "context", contextId: id } }),
    ).done;
    return { kind: "generation", state: offer?.state ?? "", contextId: id, firstToken: firstToken ?? { token: -1 } };
  };
  const expectFree = async (...rigs: Rig[]): Promise<void> => {
    for (const { scheduler, pool } of rigs) {
      await scheduler.drain();
      await scheduler.close();
      expect(pool.free).toBe(BLOCKS);
    }
  };

  it("the younger gives way, whatever the order, and the older is served", async () => {
    for (const isFirst of [true, false]) {
      const [one, other] = [worker(), worker()];
      const [older, younger] = [requestId(1), requestId(2)];
      const [atOne, atOther] = isFirst ? [older, younger] : [younger, older];
      const roles = [await prefill(one, atOne), await prefill(other, atOther)] as const;
      const mine = spec(promptOf(atOther), OUTPUT, { role: roles[1] });
      const theirs = spec(promptOf(atOne), OUTPUT, { role: roles[0] });
      const outcomes = [one.scheduler.submit(mine), other.scheduler.submit(theirs)].map(outcomeOf);
      await vi.advanceTimersByTimeAsync(GIVE_WAY_MS - 1);
      expect(one.scheduler.load.waiting + other.scheduler.load.waiting).toBe(2);
      await vi.advanceTimersByTimeAsync(1);
      expect(await Promise.all(outcomes)).toEqual(isFirst ? ["GAVE_WAY", "done"] : ["done", "GAVE_WAY"]);
      const served = isFirst ? theirs : mine;
      expect(served.output).toEqual(TokenEngine.oracle(promptOf(older), OUTPUT));
      await expectFree(one, other);
    }
  });

  it("nobody gives way while what holds the blocks finishes by itself", async () => {
    const [one, other] = [worker(), worker()];
    const role = await prefill(other, requestId(7));
    // Computes here until its call is let go: its 7 blocks come back, an offer's would not.
    let open = (): void => {};
    one.engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const running = one.scheduler.submit(spec(tokensOf(25), OUTPUT));
    const waiting = one.scheduler.submit(spec(promptOf(requestId(7)), OUTPUT, { role }));
    const outcomes = [running, waiting].map(outcomeOf);
    await vi.advanceTimersByTimeAsync(10 * GIVE_WAY_MS);
    expect(one.scheduler.load.waiting).toBe(1);
    open();
    expect(await Promise.all(outcomes)).toEqual(["done", "done"]);
    await expectFree(one, other);
  });
});
