export { type JsonObject, parseBody, parseList, stringifyBody, stringifyList } from "./body.ts";
export {
  ContextReplyParams,
  DisaggregatedParams,
  FirstTokenLogProbs,
  Id64,
  RequestType,
} from "./disaggregated_params.ts";
export { type ErrorAnswer, type ErrorBody, type ErrorPlace, errorBody, errorEvent, type Hop } from "./error_body.ts";
export {
  chatParams,
  completionParams,
  type GenerationParams,
  type PromptSource,
  type SamplingParams,
} from "./generation.ts";
export {
  type ChatLogprobs,
  type CompletionLogprobs,
  chatLogprobs,
  completionLogprobs,
  type TokenLogprob,
  tokenText,
} from "./logprobs.ts";
export { ChatCompletionRequest, ChatMessage, CompletionRequest, RoutedRequest } from "./requests.ts";
export {
  type AnswerHead,
  answerId,
  type ChatChunk,
  type ChatCompletionResponse,
  type CompletionChunk,
  type CompletionResponse,
  type ContextReply,
  chatChunk,
  chatResponse,
  completionChunk,
  completionResponse,
  type Delta,
  type Ending,
  type FinishReason,
  type Usage,
  usage,
  usageChunk,
} from "./responses.ts";
export { SSE_DONE, SseParser, sseEvent, sseHeaders } from "./sse.ts";
export { parseRequest } from "./validate.ts";
