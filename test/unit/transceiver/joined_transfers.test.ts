import { describe, expect, it } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { newEpoch, newToken, requestId } from "../../../src/ids.ts";
import type { CancelOutcome, ReceiveTransfer, SendTransfer, TransferReport } from "../../../src/transceiver/api.ts";
import { joinReceives, joinSends } from "../../../src/transceiver/joined_transfers.ts";
import { decodeState, encodeState } from "../../../src/transceiver/opaque_state.ts";
import { Progress } from "../../../src/transceiver/progress.ts";
import { Settled } from "../../../src/transceiver/settled.ts";

const id = requestId(5);
const layout = { layers: 4, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
const report = (bytes: number, ms = bytes): TransferReport => ({
  requestId: id,
  bytes,
  blocks: 4,
  tokens: 100,
  ms,
  queueMs: 1,
  connectMs: 0,
  waitMs: 0,
  movingMs: ms / 2,
  verifyMs: 0,
  gbPerS: 0,
  path: "shared_memory",
  chunks: 1,
  runs: 2,
  pieces: 3,
  attempts: 1,
});
const failure = (code: "CANCELLED" | "LEASE_EXPIRED"): KvError =>
  code === "CANCELLED"
    ? new KvError(code, { transfer: "one", why: "test" })
    : new KvError(code, { transfer: "one", ms: 5 });
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A transfer of one rank whose end the test decides; cancelling ends it at once, or when the test lets it. */
class Part {
  readonly settled = new Settled<TransferReport>();
  readonly releasing = new Settled<void>();
  readonly progressing = new Progress();
  readonly cancels: string[] = [];
  readonly readies: number[] = [];
  state = "";
  inFlight = false;
  #over = false;

  complete(bytes: number): void {
    this.#over = true;
    this.settled.resolve(report(bytes));
    this.progressing.end(null);
    this.releasing.resolve();
  }

  fail(code: "CANCELLED" | "LEASE_EXPIRED" = "CANCELLED"): void {
    this.#over = true;
    this.settled.reject(failure(code));
    this.progressing.end(failure(code));
  }

  readonly cancel = (reason = ""): CancelOutcome => {
    if (this.#over) return "already_complete";
    this.cancels.push(reason);
    if (this.inFlight) return "in_flight";
    this.fail();
    return "cancelled";
  };

  get send(): SendTransfer {
    const { state, cancel } = this;
    const ready = (tokens: number): void => {
      this.readies.push(tokens);
    };
    return { requestId: id, state, ready, finish: () => ready(100), done: this.settled.promise, cancel };
  }

  get receive(): ReceiveTransfer {
    const [done, released] = [this.settled.promise, this.releasing.promise];
    return { requestId: id, tokens: 100, done, released, progress: this.progressing, cancel: this.cancel };
  }
}

function sends() {
  const parts = [new Part(), new Part(), new Part()] as const;
  for (const [rank, part] of parts.entries()) {
    const one = { rank, epoch: newEpoch(), tcp: "tcp://127.0.0.1:1", unix: null, token: newToken() };
    const head = { instance: "a", layout, tpSize: 1, ppSize: 3, requestId: id, tokens: 100 };
    part.state = encodeState({ ...head, ranks: [one] });
  }
  const joined = joinSends([parts[0].send, parts[1].send, parts[2].send]);
  const seen = { outcome: "" };
  joined.done.then(
    () => {
      seen.outcome = "ok";
    },
    (error: KvError) => {
      seen.outcome = error.code;
    },
  );
  return { parts, joined, seen };
}

function receives() {
  const parts = [new Part(), new Part()] as const;
  return { parts, joined: joinReceives([parts[0].receive, parts[1].receive]) };
}

describe("the sends of several ranks", () => {
  it("are one: one state, one word of progress, complete when all are", async () => {
    const { parts, joined, seen } = sends();
    expect(decodeState(joined.state).ranks.map(({ rank }) => rank)).toEqual([0, 1, 2]);
    joined.ready(40);
    for (const part of parts) expect(part.readies).toEqual([40]);
    parts[0].complete(10);
    parts[2].complete(30);
    await turn();
    expect(seen.outcome).toBe("");
    parts[1].complete(20);
    expect(await joined.done).toMatchObject({ bytes: 60, ms: 30, movingMs: 30, chunks: 3, runs: 6, tokens: 100 });
    expect(joined.cancel()).toBe("already_complete");
  });

  it("end together when one fails, but are not over before the last has let its blocks go", async () => {
    const { parts, seen } = sends();
    parts[2].inFlight = true;
    parts[0].fail();
    await turn();
    expect(parts.map(({ cancels }) => cancels.length > 0)).toEqual([false, true, true]);
    expect(seen.outcome).toBe("");
    parts[2].fail();
    await turn();
    expect(seen.outcome).toBe("CANCELLED");
  });

  it("go on when only the last word of one was lost", async () => {
    const { parts, seen } = sends();
    parts[0].fail("LEASE_EXPIRED");
    await turn();
    expect(parts.flatMap(({ cancels }) => cancels)).toEqual([]);
    parts[1].complete(1);
    parts[2].complete(1);
    await turn();
    expect(seen.outcome).toBe("LEASE_EXPIRED");
  });

  it("say in flight when one of them is", () => {
    const { parts, joined } = sends();
    parts[0].complete(1);
    parts[1].inFlight = true;
    expect(joined.cancel("test")).toBe("in_flight");
    expect(parts.map(({ cancels }) => cancels)).toEqual([[], ["test"], ["test"]]);
  });
});

describe("the receives of several ranks", () => {
  it("are complete when all are, and progress is what has arrived in each", async () => {
    const { parts, joined } = receives();
    const seen: number[] = [];
    const reading = (async () => {
      for await (const tokens of joined.progress) seen.push(tokens);
    })();
    await turn();
    parts[0].progressing.advance(80);
    await turn();
    parts[1].progressing.advance(50);
    await turn();
    for (const part of parts) part.progressing.advance(100);
    await turn();
    parts[0].complete(10);
    parts[1].complete(20);
    await reading;
    expect(seen).toEqual([50, 100]);
    expect(await joined.done).toMatchObject({ bytes: 30 });
    await joined.released;
    expect(joined.cancel()).toBe("already_complete");
  });

  it("fail with the first failure at once, cancel the rest, and are released only when the rest is quiet", async () => {
    const { parts, joined } = receives();
    parts[1].inFlight = true;
    let released = false;
    void joined.released.then(() => {
      released = true;
    });
    parts[0].fail();
    await expect(joined.done).rejects.toMatchObject({ code: "CANCELLED" });
    await turn();
    expect(parts[1].cancels).toHaveLength(1);
    parts[0].releasing.resolve();
    await turn();
    expect(released).toBe(false);
    parts[1].releasing.resolve();
    await turn();
    expect(released).toBe(true);
    const late = (async () => {
      for await (const _tokens of joined.progress);
    })();
    await expect(late).rejects.toMatchObject({ code: "CANCELLED" });
  });

  it("cancel all", async () => {
    const { parts, joined } = receives();
    expect(joined.cancel("test")).toBe("cancelled");
    expect(parts.map(({ cancels }) => cancels)).toEqual([["test"], ["test"]]);
    await expect(joined.done).rejects.toMatchObject({ code: "CANCELLED" });
  });
});
