import { afterAll, beforeEach, describe, expect, it } from "vitest";
import type { KvError } from "../../../src/errors.ts";
import { KvError as Failure } from "../../../src/errors.ts";
import { attemptOf, type BlockId, newEpoch, newToken, requestId, type TransferId } from "../../../src/ids.ts";
import { BlockPool } from "../../../src/kv/pool.ts";
import type { TransferReport } from "../../../src/transceiver/api.ts";
import type { LinkUser } from "../../../src/transceiver/link_user.ts";
import type { PeerLink } from "../../../src/transceiver/peer_link.ts";
import type { FrameOf } from "../../../src/transceiver/protocol.ts";
import { PullTurns } from "../../../src/transceiver/pull_turns.ts";
import { ReceiverSession } from "../../../src/transceiver/receiver_session.ts";
import { receiverTable } from "../../../src/transceiver/receiver_table.ts";
import type { VerifyMode } from "../../../src/transceiver/verification.ts";
import { VirtualPlane } from "./virtual_plane.ts";

type PullFields = Parameters<PeerLink["pull"]>[1];

const LEASE_MS = 10_000;
const TRANSFER_MS = 8_000;
const STALL_MS = 3_000;
const TOKENS = 100;
const BLOCK_TOKENS = 32;
const sender = newEpoch();
const receiver = newEpoch();

/** Stands for the connection: notes what is written, and lets a test say what comes. */
class ScriptedLink {
  readonly tokensPerBlock = BLOCK_TOKENS;
  readonly peer = { release: () => {} };
  readonly target = { epoch: sender };
  up = true;
  readonly pulls: PullFields[] = [];
  readonly told: { readonly status: string; readonly transferId: TransferId }[] = [];
  readonly #plane: VirtualPlane;

  constructor(plane: VirtualPlane) {
    this.#plane = plane;
  }

  join(user: LinkUser): void {
    user.linkUp();
  }
  leave(): void {}
  pull(_user: LinkUser, fields: PullFields): number {
    this.pulls.push(fields);
    return this.#plane.nowMs();
  }
  done(_offer: unknown, transferId: TransferId, status: FrameOf<"DONE">["status"]): void {
    this.told.push({ status, transferId });
  }
  decline(): void {}
  renewNow(): void {}
  renewalMs(): undefined {
    return undefined;
  }
}

const seen = new Set<string>();

/** A pull of 100 tokens in four blocks whose bytes are all here: it waits for digests, its own and the sender's. */
class Verifying {
  readonly plane = new VirtualPlane();
  readonly link = new ScriptedLink(this.plane);
  readonly pool = new BlockPool({ blocks: 8, blockBytes: 64 });
  readonly session: ReceiverSession;
  mismatches = 0;
  end: { readonly report: TransferReport | null; readonly error: KvError | null } | null = null;

  constructor(verify: VerifyMode = "full", token: ReturnType<typeof newToken> | null = newToken()) {
    const blocks = this.pool.allocate(4);
    this.session = new ReceiverSession(
      {
        plane: this.plane,
        limits: { queueMs: 5_000, transferMs: TRANSFER_MS, stallMs: STALL_MS, strict: false, verify },
        turns: new PullTurns({ total: 8, perPeer: 8 }),
        reader: { rank: 0, tpSize: 1, ppSize: 1 },
        link: () => this.link as unknown as PeerLink,
        tokensPerBlock: BLOCK_TOKENS,
        layers: { from: 0, to: 2 },
        countMismatches: (count) => {
          this.mismatches += count;
        },
        settled: (_sender, report, error) => {
          this.end = { report, error };
        },
        released: () => {},
        observer: ({ from, event }) => {
          if (from === "VERIFY") seen.add(event);
        },
      },
      { name: "context", epoch: sender, tcp: "tcp://127.0.0.1:1", unix: null },
      { requestId: requestId(1), token, peer: "context", tokens: TOKENS, skipTokens: 0, blocks },
    );
    blocks.release();
    this.session.turn();
  }

  get id(): TransferId {
    return this.link.pulls.at(-1)?.transferId as TransferId;
  }

  /** GRANT and the one read; the session then verifies. */
  read(quiet = true): this {
    const head = { type: "GRANT", se: sender, re: receiver, transferId: this.id } as const;
    const blocks = [4, 5, 6, 7] as BlockId[];
    this.session.granted({ ...head, seq: 0, leaseMs: LEASE_MS, path: "shared_memory", blocks, ready: TOKENS });
    this.plane.finish(this.plane.reads.length - 1);
    if (quiet) this.quiet();
    return this;
  }

  quiet(): void {
    this.plane.reads.at(-1)?.listener.quiet();
  }

  own(...digests: readonly number[]): void {
    this.plane.digests.at(-1)?.done(bytesOf(digests));
  }

  theirs(first: number, ...digests: readonly number[]): void {
    const head = { type: "READY", se: sender, re: receiver, transferId: this.id } as const;
    this.session.ready({ ...head, tokens: TOKENS, digestsFrom: first, digests: bytesOf(digests) });
  }

  get code(): string | undefined {
    return this.end?.error?.code;
  }

  /** Told once, and every block free. */
  expectEnd(code: string | null, status: string): void {
    expect(this.end === null ? "not ended" : (this.end.error?.code ?? null)).toBe(code);
    expect(this.link.told.map((told) => told.status)).toEqual([status]);
    expect([this.session.state, this.pool.free, this.plane.holds]).toEqual(["END", 8, 0]);
  }
}

const bytesOf = (digests: readonly number[]): Uint8Array =>
  Uint8Array.from(digests.flatMap((digest) => Array.from({ length: 8 }, () => digest)));
const failure = () => new Failure("PEER_LOST", { peer: "context", epoch: sender, ms: 5 });

describe("a receiver in VERIFY", () => {
  let one: Verifying;
  beforeEach(() => {
    one = new Verifying().read();
  });

  it("digests, digestsEqual: is complete when all of both sides are here and equal, in any order of coming", () => {
    expect(one.plane.digests.at(-1)?.ranges).toEqual([0, 32, 32, 64, 64, 96, 96, 100]);
    one.theirs(2, 3, 4);
    one.own(1, 2, 3, 4);
    expect(one.session.state).toBe("VERIFY");
    one.theirs(0, 1, 2);
    one.expectEnd(null, "ok");
    expect(one.end?.report).toMatchObject({ attempts: 1 });
  });

  it("digestsDiffer: reads everything once more under a new attempt", () => {
    one.theirs(0, 1, 2, 3, 4);
    one.own(1, 9, 3, 4);
    expect([one.session.state, one.link.pulls.length, one.mismatches]).toEqual(["PULL", 2, 1]);
    expect(attemptOf(one.id)).toBe(1);
    one.read();
    expect(one.plane.reads.map(({ request }) => [request.fromToken, request.toToken])).toEqual([
      [0, TOKENS],
      [0, TOKENS],
    ]);
    one.theirs(0, 1, 2, 3, 4);
    one.own(1, 2, 3, 4);
    one.expectEnd(null, "ok");
    expect(one.end?.report).toMatchObject({ attempts: 2 });
  });

  it("digestsDiffer: waits with the new attempt until the old read is quiet, whose bytes could still arrive", () => {
    const other = new Verifying().read(false);
    other.theirs(0, 1, 2, 3, 4);
    other.own(1, 9, 3, 4);
    expect([other.session.state, other.link.pulls.length]).toEqual(["RETRY", 1]);
    other.quiet();
    expect([other.session.state, other.link.pulls.length]).toEqual(["PULL", 2]);
  });

  it("digestsDifferAgain: fails and names the first block and how many more differ", () => {
    for (const _attempt of [0, 1]) {
      one.theirs(0, 1, 2, 3, 4);
      one.own(1, 9, 3, 8);
      if (one.session.state === "PULL") one.read();
    }
    one.expectEnd("DIGEST_MISMATCH", "failed");
    expect(one.end?.error?.message).toContain(
      "block 1 (number 1 of the sequence, tokens 32 to 64, the sender's block 5)",
    );
    expect(one.mismatches).toBe(4);
  });

  it("has its own digests computed while only token 0 is missing, once, and compares when that is here", () => {
    const early = new Verifying("full", null).read();
    expect([early.session.state, early.plane.digests.length]).toEqual(["READ", 1]);
    early.own(1, 2, 3, 4);
    early.theirs(0, 1, 2, 3, 4);
    expect([early.session.state, early.end]).toEqual(["READ", null]);
    const head = { type: "FINISHED", se: sender, re: receiver, transferId: early.id } as const;
    early.session.finished({ ...head, tokens: TOKENS, firstTokens: [7] });
    expect(early.plane.digests.length).toBe(1);
    early.expectEnd(null, "ok");
    const wrong = new Verifying("full", null).read();
    wrong.own(1, 9, 3, 4);
    wrong.theirs(0, 1, 2, 3, 4);
    wrong.session.finished({ ...head, transferId: wrong.id, tokens: TOKENS, firstTokens: [7] });
    expect([wrong.session.state, wrong.mismatches]).toEqual(["PULL", 1]);
    wrong.read();
    expect(wrong.plane.digests.length).toBe(2);
  });

  it("takes no digests of an attempt that is over", () => {
    one.theirs(0, 1, 2, 3, 4);
    const late = one.plane.digests.at(-1);
    one.own(1, 9, 3, 4);
    one.read();
    late?.done(bytesOf([1, 2, 3, 4]));
    one.theirs(0, 1, 2, 3, 4);
    expect(one.session.state).toBe("VERIFY");
    one.own(1, 2, 3, 4);
    one.expectEnd(null, "ok");
  });

  it("renewed, readQuiet: goes on", () => {
    const other = new Verifying().read(false);
    other.session.renewed(other.plane.nowMs());
    other.quiet();
    expect(other.session.state).toBe("VERIFY");
    expect(other.session.renewing).toBe(other.id);
  });

  it("leaseLost, aborted, cancel: fails and tells the sender", () => {
    one.session.leaseLost();
    one.expectEnd("GONE", "failed");
    const aborted = new Verifying().read();
    aborted.session.aborted({
      type: "ABORT",
      se: sender,
      re: receiver,
      transferId: aborted.id,
      code: "CANCELLED",
      text: "x",
    } as FrameOf<"ABORT">);
    aborted.expectEnd("SENDER_ABORTED", "failed");
    const cancelled = new Verifying().read();
    expect(cancelled.session.cancel("client left")).toBe("cancelled");
    cancelled.expectEnd("CANCELLED", "cancelled");
  });

  it("transferTimer: is out of time like a read", () => {
    one.plane.advance(TRANSFER_MS);
    one.expectEnd("TRANSFER_TIMEOUT", "timed_out");
  });

  it("stalled: gives up when no digest comes for stallMs, counted from the last", () => {
    one.plane.advance(STALL_MS - 1);
    one.theirs(0, 1);
    one.plane.advance(STALL_MS - 1);
    one.session.tick(one.plane.nowMs());
    expect(one.session.state).toBe("VERIFY");
    one.plane.advance(1);
    one.session.tick(one.plane.nowMs());
    one.expectEnd("COPY_FAILED", "failed");
  });

  it("linkLost, linkUp: reads again when digests were lost with the connection", () => {
    one.session.linkLost(failure());
    expect(one.session.state).toBe("VERIFY");
    one.session.linkUp();
    expect([one.session.state, attemptOf(one.id)]).toEqual(["PULL", 1]);
  });

  it("with all digests of the sender here the link decides nothing any more", () => {
    for (const event of ["linkLost", "linkFailed", "staleEpoch", "senderDead"] as const) {
      const other = new Verifying().read();
      other.theirs(0, 1, 2, 3, 4);
      other.session[event](failure());
      expect(other.session.state, event).toBe("VERIFY");
      other.own(1, 2, 3, 4);
      expect(other.end?.error ?? null, event).toBeNull();
      other.expectEnd(null, "ok");
    }
    // But a difference can't be repaired any more.
    one.theirs(0, 1, 2, 3, 4);
    one.session.senderDead(failure());
    one.own(1, 2, 3, 9);
    one.expectEnd("DIGEST_MISMATCH", "failed");
  });

  it("linkFailed, staleEpoch, senderDead: `full` without all digests is a failure, which nobody is told", () => {
    for (const event of ["linkFailed", "staleEpoch", "senderDead"] as const) {
      const other = new Verifying().read();
      other.theirs(0, 1, 2, 3);
      other.own(1, 2, 3, 4);
      other.session[event](failure());
      expect([other.code, other.link.told, other.pool.free]).toEqual(["PEER_LOST", [], 8]);
    }
  });

  it("senderDead: `sampled` compares the digests that came instead", () => {
    // Which blocks are in the sample is up to the random id: try until there are two.
    for (let tries = 0; ; tries++) {
      expect(tries).toBeLessThan(1_000);
      const other = new Verifying("sampled").read();
      const sampled = (other.plane.digests.at(-1)?.ranges.length ?? 0) / 2;
      if (sampled < 2) continue;
      other.own(...Array.from({ length: sampled }, () => 1));
      other.theirs(0, 1);
      expect(other.session.state).toBe("VERIFY");
      other.session.senderDead(failure());
      other.expectEnd(null, "ok");
      break;
    }
  });

  afterAll(() => {
    expect([...seen].sort()).toEqual(Object.keys(receiverTable.VERIFY).sort());
  });
});
