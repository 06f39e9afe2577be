import type { Dispatcher } from "undici";
import { z } from "zod";
import type { Clock } from "../clock.ts";
import { exchange } from "./exchange.ts";

/** What GET /steady_clock_offset answers: seconds of the worker's steady clock (trtllm-protocol.md section 1.5). */
const Stamps = z.looseObject({ receive_ts: z.number(), transmit_ts: z.number() });

/** Seconds that the worker's steady clock is ahead of ours, by the four stamps of one exchange. */
export function clockOffsetS(stamps: {
  readonly sentS: number;
  readonly receivedAtWorkerS: number;
  readonly answeredByWorkerS: number;
  readonly arrivedS: number;
}): number {
  return (stamps.receivedAtWorkerS - stamps.sentS + (stamps.answeredByWorkerS - stamps.arrivedS)) / 2;
}

export interface OffsetOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const PATH = "/steady_clock_offset";
const BYTES_MAX = 64 * 1024;

/**
 * Measures a worker's clock and tells it the correction, so that from then on its metric stamps are in our clock.
 * @returns the offset in seconds, or undefined for a worker without that route
 * @throws Error when the worker's answers make no sense; ExchangeError
 */
export async function exchangeClockOffset(dispatcher: Dispatcher, options: OffsetOptions): Promise<number | undefined> {
  const limits = { signal: options.signal, silenceMs: 0, bytesMax: BYTES_MAX };
  const nowS = (): number => options.clock.nowMs() / 1000;
  let sentS = nowS();
  const answer = await exchange(dispatcher, {
    method: "GET",
    path: PATH,
    ...limits,
    onSend: () => {
      sentS = nowS();
    },
  });
  const arrivedS = nowS();
  if (answer.status === 404 || answer.status === 405) return undefined;
  if (answer.status !== 200) throw new Error(`GET ${PATH} answered ${answer.status}`);
  const stamps = Stamps.parse(JSON.parse(answer.body.toString("utf8")));
  const offsetS = clockOffsetS({
    sentS,
    receivedAtWorkerS: stamps.receive_ts,
    answeredByWorkerS: stamps.transmit_ts,
    arrivedS,
  });
  const told = await exchange(dispatcher, {
    method: "POST",
    path: PATH,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ offset: -offsetS }),
    ...limits,
  });
  if (told.status !== 200) throw new Error(`POST ${PATH} answered ${told.status}`);
  return offsetS;
}
