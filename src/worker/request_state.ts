import { KvError } from "../errors.ts";

/** Names of TensorRT-LLM's request states (trtllm-protocol.md section 3.1), plus QUARANTINED. */
export const requestStates = [
  "DISAGG_CONTEXT_WAIT_SCHEDULER",
  "CONTEXT_INIT",
  "DISAGG_CONTEXT_INIT_AND_TRANS",
  "DISAGG_CONTEXT_TRANS_IN_PROGRESS",
  "DISAGG_CONTEXT_COMPLETE",
  "DISAGG_GENERATION_INIT",
  "DISAGG_GENERATION_TRANS_IN_PROGRESS",
  "DISAGG_GENERATION_TRANS_COMPLETE",
  "GENERATION_IN_PROGRESS",
  "GENERATION_TO_COMPLETE",
  "GENERATION_COMPLETE",
  "QUARANTINED",
  "DISAGG_TRANS_ERROR",
] as const;
export type RequestState = (typeof requestStates)[number];

/**
 * pulled: a generation worker waits for it · early: nobody does yet, but blocks are plentiful · stream: its KV is offered while it is computed ·
 * decode: has its KV and at least one token, rows go into decode batches · offer: prefilled and answered, blocks wait for the peer ·
 * delivered: the peer has them · receive: blocks reserved, the read runs · received: the KV is here · finish: the last token is out ·
 * abortInStep: its end is decided while an engine call still writes its blocks · quarantine: given up while a transport may still
 * write its blocks · fail: failed or cancelled, nothing touches its blocks.
 */
export const requestEvents = [
  "pulled",
  "early",
  "stream",
  "decode",
  "offer",
  "delivered",
  "receive",
  "received",
  "finish",
  "abortInStep",
  "quarantine",
  "fail",
] as const;
export type RequestEvent = (typeof requestEvents)[number];

/** A missing cell is impossible and asserted; a test walks all pairs. */
export const requestEdges: Readonly<Record<RequestState, Readonly<Partial<Record<RequestEvent, RequestState>>>>> = {
  DISAGG_CONTEXT_WAIT_SCHEDULER: { pulled: "CONTEXT_INIT", early: "CONTEXT_INIT", fail: "DISAGG_TRANS_ERROR" },
  CONTEXT_INIT: {
    stream: "DISAGG_CONTEXT_INIT_AND_TRANS",
    decode: "GENERATION_IN_PROGRESS",
    offer: "DISAGG_CONTEXT_TRANS_IN_PROGRESS",
    finish: "GENERATION_COMPLETE",
    abortInStep: "GENERATION_TO_COMPLETE",
    fail: "DISAGG_TRANS_ERROR",
  },
  DISAGG_CONTEXT_INIT_AND_TRANS: {
    offer: "DISAGG_CONTEXT_TRANS_IN_PROGRESS",
    abortInStep: "GENERATION_TO_COMPLETE",
    fail: "DISAGG_TRANS_ERROR",
  },
  DISAGG_CONTEXT_TRANS_IN_PROGRESS: { delivered: "DISAGG_CONTEXT_COMPLETE", fail: "DISAGG_TRANS_ERROR" },
  DISAGG_CONTEXT_COMPLETE: {},
  DISAGG_GENERATION_INIT: {
    receive: "DISAGG_GENERATION_TRANS_IN_PROGRESS",
    finish: "GENERATION_COMPLETE",
    fail: "DISAGG_TRANS_ERROR",
  },
  DISAGG_GENERATION_TRANS_IN_PROGRESS: {
    received: "DISAGG_GENERATION_TRANS_COMPLETE",
    quarantine: "QUARANTINED",
    fail: "DISAGG_TRANS_ERROR",
  },
  DISAGG_GENERATION_TRANS_COMPLETE: {
    decode: "GENERATION_IN_PROGRESS",
    finish: "GENERATION_COMPLETE",
    fail: "DISAGG_TRANS_ERROR",
  },
  GENERATION_IN_PROGRESS: {
    finish: "GENERATION_COMPLETE",
    abortInStep: "GENERATION_TO_COMPLETE",
    fail: "DISAGG_TRANS_ERROR",
  },
  GENERATION_TO_COMPLETE: { fail: "DISAGG_TRANS_ERROR" },
  GENERATION_COMPLETE: {},
  QUARANTINED: { fail: "DISAGG_TRANS_ERROR" },
  DISAGG_TRANS_ERROR: {},
};

export const isTerminal = (state: RequestState): boolean => Object.keys(requestEdges[state]).length === 0;

/** One edge that a request took. */
export interface StateChange {
  readonly requestId: string;
  readonly from: RequestState;
  readonly event: RequestEvent;
  readonly to: RequestState;
}

/** @throws KvError INTERNAL for a pair that the table does not hold */
export function nextRequestState(requestId: string, from: RequestState, event: RequestEvent): StateChange {
  const to = requestEdges[from][event];
  if (to === undefined) {
    throw new KvError("INTERNAL", { where: "worker/request_state", why: `request ${requestId}: ${event} in ${from}` });
  }
  return { requestId, from, event, to };
}
