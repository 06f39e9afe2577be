import { type ChildProcess, fork } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { BlockHold } from "../../../src/kv/pool.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { type Golden, goldens, TINY } from "./opened_engine.ts";

const BLOCKS = 128;
const STEPS = 3;
const chosen = ["hello", "multi-turn"];

interface Offered {
  readonly first: number;
  readonly state: string;
  readonly kvBytes: readonly string[];
}

async function answer<T>(child: ChildProcess): Promise<T> {
  const [message] = (await once(child, "message")) as [T & { error?: string }];
  if (message.error !== undefined) throw new Error(message.error);
  return message;
}

/** All pass-key prompts, whose KV spans many blocks, and two short ones whose last block is partly filled. */
const prompts = (): Golden[] => goldens().filter(({ name, ids }) => chosen.includes(name) || ids.length > 200);

test.each(["f32", "bf16"] as const)(
  "KV bytes and logits bits are equal in a process that received %s blocks in reversed places",
  async (kvDtype) => {
    const child = fork(fileURLToPath(new URL("context_process.mjs", import.meta.url)), [TINY, kvDtype], {
      execArgv: [],
    });
    await answer(child);
    const engine = await ReferenceEngine.load(TINY, { kv: kvDtype });
    const { layers, kvHeads, headDim, dtype, tokensPerBlock } = engine.geometry;
    await using kv = await KvTransceiver.open({
      layout: { layers, kvHeads, headDim, dtype, tokensPerBlock, attention: "gqa" },
      pool: { memory: "host", blocks: BLOCKS },
    });
    engine.attach(kv.span, BLOCKS);
    const vectorBytes = kv.blockBytes / (layers * 2 * kvHeads * tokensPerBlock);
    expect(prompts().length).toBeGreaterThan(4);

    for (const [id, { name, ids, output_ids }] of prompts().entries()) {
      child.send({ id: id + 1, tokens: ids, steps: STEPS });
      const offered = await answer<Offered>(child);
      expect(offered.first, name).toBe(output_ids[0]);

      const count = Math.ceil((ids.length + STEPS) / tokensPerBlock);
      const singles = Array.from({ length: count }, () => kv.pool.allocate(1));
      const blocks = BlockHold.join(kv.pool, singles.reverse());
      const receiving = kv.receive({ state: offered.state, blocks });
      const logitsThere = answer<{ logits: string[] }>(child);
      const report = await receiving.done;
      expect(report.bytes).toBe(ids.length * layers * 2 * kvHeads * vectorBytes);

      for (const [place, text] of offered.kvBytes.entries()) {
        const filled = Math.min(tokensPerBlock, ids.length - place * tokensPerBlock);
        const there = Buffer.from(text, "base64");
        const here = Buffer.from(kv.memory, (blocks.ids[place] ?? 0) * kv.blockBytes, kv.blockBytes);
        for (let run = 0; run < layers * 2 * kvHeads; run++) {
          const start = run * tokensPerBlock * vectorBytes;
          const end = start + filled * vectorBytes;
          expect(here.compare(there, start, end, start, end), `${name}: block ${place}, run ${run}`).toBe(0);
        }
      }

      const logitsHere: string[] = [];
      let token = offered.first;
      for (let step = 0; step < STEPS; step++) {
        const startPos = ids.length + step;
        const row = await engine.logits({ tokens: Uint32Array.of(token), startPos, blockTable: blocks.ids });
        logitsHere.push(
          createHash("sha256")
            .update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength))
            .digest("hex"),
        );
        token = row.indexOf(Math.max(...row));
        if (kvDtype === "f32" && step + 1 < output_ids.length) expect(token, name).toBe(output_ids[step + 1]);
      }
      expect((await logitsThere).logits, name).toEqual(logitsHere);
      blocks.release();
    }
    expect(kv.pool.free).toBe(BLOCKS);
    child.send("close");
    await once(child, "exit");
    await engine.close();
  },
);
