import type { RequestId } from "../ids.ts";

/** Sees every step of every session, synchronously, after the state changed and before its effects run. For tests and simulations. */
export type SessionObserver = (step: {
  readonly role: "sender" | "receiver";
  readonly requestId: RequestId;
  readonly from: string;
  readonly event: string;
  readonly to: string;
}) => void;
