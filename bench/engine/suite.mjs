import { smolLm2 } from "../../scripts/smollm2.mjs";
import { median } from "../statistics.mjs";
import { openEngine } from "./opened.mjs";

/**
 * Tokens a second of prefill and of decode, one sequence. The bounds are three times llama.cpp's figures of the same machine class
 * (reference-engine.md section 5); the engine is there to be exact, not fast.
 */
export async function run(add, say) {
  await measure(add, "tiny", "models/tiny.gguf", { prompt: 500, decoded: 200, rounds: 9 });
  const smol = smolLm2();
  if ("missing" in smol) say(`SmolLM2 is not measured: ${smol.missing}`);
  else await measure(add, "SmolLM2", smol.file, { prompt: 512, decoded: 32, rounds: 3 });
}

async function measure(add, model, file, { prompt, decoded, rounds }) {
  for (const threads of [1, 2]) {
    const opened = await openEngine(file, { threads, tokens: prompt + decoded });
    const tokens = Uint32Array.from({ length: prompt }, (_, index) => 3 + ((index * 7) % 500));
    const prefillMs = [];
    const decodeMs = [];
    await opened.prefill(tokens);
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      let token = await opened.prefill(tokens);
      const filled = performance.now();
      for (let index = 0; index < decoded; index++) token = await opened.decode(token, prompt + index);
      prefillMs.push(filled - start);
      decodeMs.push((performance.now() - filled) / decoded);
    }
    const name = `${model}-${threads}-thread${threads === 1 ? "" : "s"}`;
    add(name, "prefill_tok_s", (prompt / median(prefillMs)) * 1000, "tok/s");
    add(name, "decode_tok_s", 1000 / median(decodeMs), "tok/s");
    add(name, "decode_ms", median(decodeMs), "ms");
    await opened.close();
  }
}
