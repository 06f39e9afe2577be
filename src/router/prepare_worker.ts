import { z } from "zod";
import type { Clock } from "../clock.ts";
import { exchangeClockOffset } from "./clock_offset.ts";
import { exchange } from "./exchange.ts";
import { KVT_PROTOCOL, type Preparation, ServedModel, ServerInfo, type UpstreamWorker } from "./upstream_worker.ts";

const BYTES_MAX = 1 << 20;
const NOT_THERE: readonly number[] = [404, 405, 501];

const ModelList = z.looseObject({ data: z.array(ServedModel) });
const Version = z.looseObject({ version: z.string() });

/** A worker that answers, but that this router can't use; the message says why. */
export class UnusableWorker extends Error {
  override readonly name = "UnusableWorker";
}

/**
 * Reads what a healthy worker says about itself and exchanges the clock offset; only then does it count (S138).
 * @throws UnusableWorker when its contract is not ours; ExchangeError, SyntaxError or ZodError when its answers make no sense
 */
export async function prepareWorker(
  worker: UpstreamWorker,
  options: { readonly clock: Clock; readonly signal: AbortSignal; readonly mustNameEndpoint: boolean },
): Promise<Preparation> {
  const info = (await getJson(worker, "/server_info", ServerInfo, options.signal)) ?? {};
  if (typeof info.kvt_protocol === "number" && info.kvt_protocol !== KVT_PROTOCOL) {
    throw new UnusableWorker(`it speaks kvt_protocol ${info.kvt_protocol}, this router ${KVT_PROTOCOL}`);
  }
  // Without it a generation worker has nobody to ask before there is a reply (S49).
  if (options.mustNameEndpoint && (info.disaggregated_params?.ctx_info_endpoint ?? null) === null) {
    throw new UnusableWorker(
      "schedule_style is generation_first, and its /server_info has no disaggregated_params.ctx_info_endpoint: " +
        "give it a transceiver (cache_transceiver_config.backend; transceiver_runtime PYTHON for trtllm-serve)",
    );
  }
  const models = await getJson(worker, "/v1/models", ModelList, options.signal);
  const clockOffsetS = await exchangeClockOffset(worker.control, options);
  return {
    info,
    models: models?.data ?? [],
    knowsDisaggRequestId: await knowsDisaggRequestId(worker, info, options.signal),
    clockOffsetS,
  };
}

/** Ours do; of trtllm-serve the 1.3 line does, earlier ones refuse a field that they don't know. */
async function knowsDisaggRequestId(worker: UpstreamWorker, info: ServerInfo, signal: AbortSignal): Promise<boolean> {
  if (typeof info.kvt_protocol === "number") return true;
  const version = await getJson(worker, "/version", Version, signal);
  const [major = 0, minor = 0] = (version?.version ?? "").split(".").map(Number);
  return major > 1 || (major === 1 && minor >= 3);
}

async function getJson<Schema extends z.ZodType>(
  worker: UpstreamWorker,
  path: string,
  schema: Schema,
  signal: AbortSignal,
): Promise<z.infer<Schema> | undefined> {
  const answer = await exchange(worker.control, {
    method: "GET",
    path,
    headers: { accept: "application/json" },
    signal,
    silenceMs: 0,
    bytesMax: BYTES_MAX,
  });
  if (NOT_THERE.includes(answer.status)) return undefined;
  if (answer.status !== 200) throw new UnusableWorker(`GET ${path} answered ${answer.status}`);
  return schema.parse(JSON.parse(answer.body.toString("utf8")));
}
