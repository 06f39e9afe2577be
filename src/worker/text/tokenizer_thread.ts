import { parentPort } from "node:worker_threads";
import { KvError } from "../../errors.ts";
import { Tokenizer } from "./tokenizer.ts";
import type { ThreadReply, ThreadRequest } from "./tokenizer_pool.ts";

const tokenizers = new Map<number, Tokenizer>();

parentPort?.on("message", (request: ThreadRequest) => {
  const reply = answer(request);
  parentPort?.postMessage(reply, "ids" in reply ? [reply.ids.buffer as ArrayBuffer] : []);
});

function answer({ vocabularyId, vocabulary, text, options }: ThreadRequest): ThreadReply {
  try {
    const tokenizer = tokenizers.get(vocabularyId) ?? (vocabulary && new Tokenizer(vocabulary));
    if (tokenizer === undefined) throw new Error(`vocabulary ${vocabularyId} never came`);
    tokenizers.set(vocabularyId, tokenizer);
    return { ids: Uint32Array.from(tokenizer.encode(text, options)) };
  } catch (error) {
    if (error instanceof KvError) return { code: error.code, details: error.details };
    const why = error instanceof Error ? error.message : String(error);
    return { code: "TOKENIZER_FAILED", details: { chars: text.length, why } };
  }
}
