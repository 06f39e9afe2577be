import { FirstTokenLogProbs } from "../openai/index.ts";
import type { FirstTokens } from "../transceiver/api.ts";
import type { Sample } from "./engine.ts";
import type { WorkerRequest } from "./request.ts";

/** What the generation worker of a generation-first request needs of its prefill. */
export function firstTokensOf(request: WorkerRequest, { token, logprobs }: Sample): FirstTokens {
  return {
    firstTokens: [token],
    ...(logprobs === undefined ? {} : { firstLogProbs: [logprobs] }),
    cachedTokens: request.cachedTokens,
  };
}

/** Token 0 of a request whose KV was received; undefined when it came without exactly one. Takes over what the context worker had cached. */
export function firstSampleOf(request: WorkerRequest): Sample | undefined {
  const { firstTokens, firstLogProbs, cachedTokens } = request.report?.first ?? { firstTokens: [] };
  const [token, ...more] = firstTokens;
  if (token === undefined || more.length > 0) return undefined;
  if (cachedTokens !== undefined) request.cachedTokens = cachedTokens;
  const { data: logprobs } = FirstTokenLogProbs.safeParse(firstLogProbs?.[0]);
  return logprobs === undefined ? { token } : { token, logprobs };
}
