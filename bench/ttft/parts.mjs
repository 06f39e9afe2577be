// Where the time to the first token went, from the records of GET /perf_metrics. Only stamps of one process are compared with each other;
// what no process saw, the hops between them and their wake-ups, is the rest of what the client measured.
import { median } from "../statistics.mjs";

/** Timing metrics by `x-request-id`, which both halves of a request share. */
async function read(port) {
  const records = await (await fetch(`http://127.0.0.1:${port}/perf_metrics`)).json();
  return new Map(records.map((record) => [record.request_id, record.perf_metrics.timing_metrics]));
}

/** Of a worker that computed the prompt, ms. */
const prefillParts = (times) => ({
  "before prefill": times.first_scheduled_time - times.server_arrival_time,
  prefill: times.first_token_time - times.first_scheduled_time,
});

/** @param second of the generation worker, when there is one */
function partsOf(way, first, second) {
  if (second === undefined) {
    return { ...prefillParts(first), "to the socket": first.server_first_token_time - first.first_token_time };
  }
  // The generation worker's wait runs beside prefill: what is left after that is in the rest.
  if (way === "generation-first") {
    return { ...prefillParts(first), "to the socket": second.server_first_token_time - second.first_token_time };
  }
  return {
    ...prefillParts(first),
    "context reply": first.server_first_token_time - first.first_token_time,
    "before transfer": second.first_scheduled_time - second.server_arrival_time,
    transfer: second.kv_cache_transfer_end - second.first_scheduled_time,
    "to the socket": second.server_first_token_time - second.kv_cache_transfer_end,
  };
}

/**
 * Rows `part_ms WAY: PART`, medians.
 * @param times ms by `x-request-id`, `WAY-tokens-round`, as the client saw them
 * @param ports of the workers of the pair and of the one that serves alone
 */
export async function addParts(add, name, times, ports) {
  const [context, generation, both] = [await read(ports.context), await read(ports.generation), await read(ports.both)];
  for (const way of ["aggregated", "context-first", "generation-first"]) {
    const parts = new Map();
    for (const [id, ms] of times) {
      const first = context.get(id) ?? both.get(id);
      if (!id.startsWith(way) || first === undefined) continue;
      const own = Object.entries(partsOf(way, first, generation.get(id))).map(([part, s]) => [part, s * 1000]);
      const known = own.reduce((sum, [, part]) => sum + part, 0);
      for (const [part, value] of [...own, ["hops and wake-ups", ms - known]]) {
        parts.set(part, [...(parts.get(part) ?? []), value]);
      }
    }
    for (const [part, values] of parts) add(name, `part_ms ${way}: ${part}`, median(values), "ms");
  }
}
