import type { TransceiverSettings } from "../../../src/config/settings.ts";

/** A transceiver as `backend: DEFAULT` gives it. */
export const transceiverDefaults: TransceiverSettings = {
  backend: "DEFAULT",
  maxTokensInBuffer: null,
  kvTransferTimeoutMs: 60_000,
  kvTransferSenderFutureTimeoutMs: 1_000,
  transceiverRuntime: null,
};
