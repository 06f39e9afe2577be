import { KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import type { FrameOf } from "./protocol.ts";

/** The error that a REFUSE is raised as: same code, said from the receiver's side. */
export function refusedError(
  frame: FrameOf<"REFUSE">,
  offer: { readonly requestId: RequestId; readonly peer: string },
): KvError {
  const { requestId: request, peer } = offer;
  const { code, text, retryAfterMs: ms } = frame;
  switch (code) {
    case "GONE":
    case "NO_OFFER":
    case "BAD_TOKEN":
      return new KvError(code, { request, peer });
    case "BUSY":
      return new KvError(code, { request, ms });
    case "LAYOUT":
      return new KvError("LAYOUT_MISMATCH", { peer, fields: text });
    case "QUEUE_TIMEOUT":
      return new KvError(code, { transfer: frame.transferId, ms });
    case "DRAINING":
      return new KvError(code, { what: peer });
  }
}
