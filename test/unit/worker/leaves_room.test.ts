import { describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { dependsOnPeer, leavesRoom } from "../../../src/worker/admission.ts";
import { type RequestRole, WorkerRequest } from "../../../src/worker/request.ts";
import { spec, tokensOf } from "./scheduler_rig.ts";

const contextId = requestId(1);
const roles: Readonly<Record<string, RequestRole>> = {
  aggregated: { kind: "aggregated" },
  context: { kind: "context", contextId },
  streamed: { kind: "context", contextId, generationFirst: true },
  fetching: { kind: "generation", state: "s", contextId: null, firstToken: { token: 1 } },
  early: {
    kind: "generation",
    contextId,
    peer: { instance: "peer", endpoints: ["tcp://127.0.0.1:1"] },
  },
};

const TOKENS_PER_BLOCK = 4;
const limits = { blocks: 20, batch: 8, blocksFor: (tokens: number) => Math.ceil(tokens / TOKENS_PER_BLOCK) };

/** `blocks` of prompt and one output token, so that prompt and all take the same. */
function request(role: string, blocks: number, state: { admitted?: boolean; received?: boolean } = {}): WorkerRequest {
  const made = new WorkerRequest(spec(tokensOf(blocks * TOKENS_PER_BLOCK), 1, { role: roles[role] as RequestRole }), {
    tokensPerBlock: TOKENS_PER_BLOCK,
    nowMs: 1,
    onChange: () => {},
  });
  if (state.admitted === true) made.admittedMs = 1;
  if (state.received === true) made.receivedMs = 1;
  return made;
}

const mayEnter = (role: string, blocks: number, others: readonly WorkerRequest[]): boolean => {
  const asking = request(role, blocks);
  const live = [...others, asking];
  return leavesRoom(asking, { live, waiting: live.filter(({ admittedMs }) => admittedMs === 0) }, limits);
};

describe("requests that hold blocks until a peer has found some", () => {
  it("are offers, and receives that came before their prefill", () => {
    const dependent = Object.keys(roles).filter((role) => dependsOnPeer(request(role, 1)));
    expect(dependent).toEqual(["context", "early"]);
  });

  it("are always admitted when none is there, however large", () => {
    expect(mayEnter("context", 20, [request("aggregated", 19, { admitted: true }), request("context", 19)])).toBe(true);
  });

  it("wait behind one that another worker holds blocks for, if both don't fit", () => {
    for (const half of ["fetching", "streamed"]) {
      expect(mayEnter("context", 10, [request(half, 10)])).toBe(true);
      expect(mayEnter("context", 11, [request(half, 10)])).toBe(false);
    }
    expect(mayEnter("context", 11, [request("aggregated", 10), request("context", 10), request("early", 10)])).toBe(
      true,
    );
  });

  it("leave room for the largest request around, waiting ones included", () => {
    const held = request("context", 10, { admitted: true });
    expect(mayEnter("context", 5, [held, request("fetching", 5)])).toBe(false);
    const small = request("context", 5, { admitted: true });
    expect(mayEnter("context", 5, [small, request("fetching", 10)])).toBe(true);
    expect(mayEnter("context", 6, [small, request("fetching", 10)])).toBe(false);
  });

  it("need not leave more than half of the pool", () => {
    expect(mayEnter("context", 5, [request("context", 5, { admitted: true }), request("fetching", 19)])).toBe(true);
  });

  it("do not count what finishes by itself, nor a receive whose KV is here", () => {
    const others = ["aggregated", "streamed", "fetching"].map((role) => request(role, 5, { admitted: true }));
    expect(mayEnter("early", 15, [...others, request("early", 5, { admitted: true, received: true })])).toBe(true);
  });

  it("leave half of the batch when they wait inside it", () => {
    const early = Array.from({ length: 4 }, () => request("early", 1, { admitted: true }));
    expect(mayEnter("early", 1, early.slice(1))).toBe(true);
    expect(mayEnter("early", 1, early)).toBe(false);
  });
});
