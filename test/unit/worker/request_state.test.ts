import { describe, expect, it } from "vitest";
import {
  isTerminal,
  nextRequestState,
  type RequestState,
  requestEdges,
  requestEvents,
  requestStates,
} from "../../../src/worker/request_state.ts";

describe("request states", () => {
  it("answers every pair of state and event with its edge or with an error that names both", () => {
    for (const state of requestStates) {
      for (const event of requestEvents) {
        const to = requestEdges[state][event];
        if (to === undefined) {
          expect(() => nextRequestState("r1", state, event)).toThrow(`request r1: ${event} in ${state}`);
        } else {
          expect(nextRequestState("r1", state, event)).toEqual({ requestId: "r1", from: state, event, to });
        }
      }
    }
  });

  it("can reach every state and leave every one that is no end", () => {
    const reached = new Set<RequestState>(["DISAGG_CONTEXT_WAIT_SCHEDULER", "DISAGG_GENERATION_INIT"]);
    for (const state of reached) for (const to of Object.values(requestEdges[state])) reached.add(to);
    expect([...reached].sort()).toEqual([...requestStates].sort());
  });

  it("ends in three states only, and everything that is not answered yet can fail", () => {
    const ends: RequestState[] = ["DISAGG_CONTEXT_COMPLETE", "DISAGG_TRANS_ERROR", "GENERATION_COMPLETE"];
    expect(requestStates.filter(isTerminal).sort()).toEqual(ends);
    for (const state of requestStates) {
      if (!isTerminal(state)) expect(requestEdges[state].fail).toBe("DISAGG_TRANS_ERROR");
    }
  });
});
