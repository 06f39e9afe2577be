import { KvError } from "../../../src/errors.ts";
import type { BlockId } from "../../../src/ids.ts";
import type { DecodeRow, Engine, EngineGeometry, PrefillRequest, Sample } from "../../../src/worker/engine.ts";

export const TOKENS_PER_BLOCK = 4;
export const VOCAB = 97;

/**
 * An engine whose "KV" of a token is the token itself, kept by block id. What it samples depends on every token that the block table
 * leads to, so a block that was freed, mixed up or never computed shows in the output. Proves the scheduler's bookkeeping, not a model.
 */
export class TokenEngine implements Engine {
  readonly geometry: EngineGeometry;
  readonly memory = new Map<BlockId, Int32Array>();
  readonly calls: string[] = [];
  /** Set by a test: calls wait here until it lets them go. */
  gate: Promise<void> | null = null;
  /** Set by a test: a prompt's KV is written, and token 0 waits here. */
  sampleGate: Promise<void> | null = null;
  failNext: Error | null = null;

  constructor(maxSeqLen = 256) {
    this.geometry = {
      arch: "tokens",
      layers: 1,
      kvHeads: 1,
      headDim: 1,
      dtype: "f32",
      tokensPerBlock: TOKENS_PER_BLOCK,
      blockBytes: 64,
      layout: "HND",
      vocab: VOCAB,
      maxSeqLen,
      vectorLevel: "generic",
    };
  }

  /** What an aggregated run must give. */
  static oracle(prompt: readonly number[], count: number): number[] {
    const tokens = [...prompt];
    for (let index = 0; index < count; index++) tokens.push(nextToken(tokens));
    return tokens.slice(prompt.length);
  }

  async prefill(request: PrefillRequest): Promise<Sample | undefined> {
    this.calls.push(`prefill ${request.startPos}+${request.tokens.length}`);
    await this.#turn(request.signal);
    for (const [offset, token] of request.tokens.entries()) {
      this.#write(request.blockTable, request.startPos + offset, token);
    }
    if (request.onLayer !== undefined) request.onLayer.written(this.geometry.layers);
    if (request.sampling === undefined) return undefined;
    await (this.sampleGate ?? Promise.resolve());
    return { token: nextToken(this.#read(request.blockTable, request.startPos + request.tokens.length)) };
  }

  async decode(rows: readonly DecodeRow[], signal?: AbortSignal): Promise<readonly Sample[]> {
    this.calls.push(`decode ${rows.length}`);
    await this.#turn(signal);
    return rows.map((row) => {
      this.#write(row.blockTable, row.pos, row.token);
      return { token: nextToken(this.#read(row.blockTable, row.pos + 1)) };
    });
  }

  async copyTokens(from: BlockId, to: BlockId, tokens: number): Promise<void> {
    this.calls.push(`copy ${tokens}`);
    await this.#turn(undefined);
    const source = this.memory.get(from);
    for (let index = 0; index < tokens; index++) this.#write([to], index, source?.[index] ?? -1);
  }

  async close(): Promise<void> {}

  async #turn(signal: AbortSignal | undefined): Promise<void> {
    await (this.gate ?? Promise.resolve());
    if (signal?.aborted === true) throw new KvError("CANCELLED", { transfer: "engine call", why: "signal" });
    const failure = this.failNext;
    this.failNext = null;
    if (failure !== null) throw failure;
  }

  /** What a transfer does: tokens [from, to) of another engine's blocks. */
  fetch(
    ids: readonly BlockId[],
    source: { engine: TokenEngine; ids: readonly BlockId[] },
    from: number,
    to: number,
  ): void {
    for (let position = from; position < to; position++) {
      const block = source.engine.memory.get(source.ids[Math.floor(position / TOKENS_PER_BLOCK)] as BlockId);
      this.#write(ids, position, block?.[position % TOKENS_PER_BLOCK] ?? -1);
    }
  }

  #write(table: readonly BlockId[], position: number, token: number): void {
    const id = table[Math.floor(position / TOKENS_PER_BLOCK)];
    if (id === undefined) throw new Error(`position ${position} is outside the block table`);
    let block = this.memory.get(id);
    if (block === undefined) {
      block = new Int32Array(TOKENS_PER_BLOCK).fill(-1);
      this.memory.set(id, block);
    }
    block[position % TOKENS_PER_BLOCK] = token;
  }

  #read(table: readonly BlockId[], length: number): number[] {
    return Array.from({ length }, (_, position) => {
      const block = this.memory.get(table[Math.floor(position / TOKENS_PER_BLOCK)] as BlockId);
      return block?.[position % TOKENS_PER_BLOCK] ?? -1;
    });
  }
}

function nextToken(tokens: readonly number[]): number {
  let hash = 7;
  for (const token of tokens) hash = (hash * 31 + token + 1) % 1_000_003;
  return hash % VOCAB;
}
