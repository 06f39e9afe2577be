import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { Placement } from "../../../src/kv/placement.ts";
import type { Layout } from "../../../src/layout.ts";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { findWrongPlaced, type PlacedKv, writePlaced } from "./placed_kv.ts";

const BLOCKS = 16;
const TOKENS = 61;
const layout = { layers: 4, kvHeads: 2, headDim: 8, dtype: "bf16", tokensPerBlock: 8, attention: "gqa" } as const;
const whole = { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 };
const hasPython = spawnSync("python3", ["--version"]).status === 0;

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-adopted-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

/** A memfd of another process: Node makes none of its own. */
class ForeignMemory implements Disposable {
  readonly fd: number;
  readonly #end: () => void;

  private constructor(fd: number, end: () => void) {
    this.fd = fd;
    this.#end = end;
  }

  static async open(bytes: number): Promise<ForeignMemory> {
    const program = `import os,sys
fd = os.memfd_create("foreign", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, ${bytes})
print(fd, flush=True)
sys.stdin.read(1)
`;
    const owner = spawn("python3", ["-c", program], { stdio: ["pipe", "pipe", "inherit"] });
    const fd = String((await once(owner.stdout, "data"))[0]).trim();
    return new ForeignMemory(openSync(`/proc/${owner.pid}/fd/${fd}`, "r+"), () => owner.stdin.end("x"));
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
    this.#end();
  }
}

const VECTOR = 16;
/** Placements that engines have, and the bytes that they take. */
const placements: Record<string, { readonly placement: Placement; readonly bytes: number }> = {
  "a tensor a layer, [2, blocks, tokens, heads, headDim], in any order": {
    bytes: 1 << 20,
    placement: {
      kv: {
        bases: [300_000, 4096, 200_064, 100_000],
        strides: { plane: BLOCKS * 8 * 2 * VECTOR, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR },
      },
    },
  },
  "a tensor a layer, [blocks, 2, heads, tokens, headDim], rows padded": {
    bytes: 1 << 20,
    placement: {
      kv: {
        bases: [0, 1, 2, 3].map((layer) => layer * 40_000),
        strides: { block: 2 * 2 * 8 * 24 + 64, plane: 2 * 8 * 24, head: 8 * 24, token: 24 },
      },
    },
  },
  "one tensor, [2, layers, blocks, tokens, heads, headDim]": {
    bytes: 1 << 20,
    placement: {
      kv: {
        bases: [0, 1, 2, 3].map((layer) => layer * BLOCKS * 8 * 2 * VECTOR),
        strides: { plane: 4 * BLOCKS * 8 * 2 * VECTOR, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR },
      },
    },
  },
};

interface Opened extends PlacedKv, AsyncDisposable {
  readonly transceiver: KvTransceiver;
}

async function open(pool: OpenOptions["pool"], of: Layout = layout): Promise<Opened> {
  const transceiver = await KvTransceiver.open({ layout: of, parallel: whole, pool, socketDir, verify: "full" });
  const kv = { layout: of, sizes: { tpSize: 1, ppSize: 1 }, ranks: [transceiver] } as const;
  return { transceiver, kv, pool, [Symbol.asyncDispose]: () => transceiver.close() };
}

async function move(from: Opened, to: Opened, number: number): Promise<void> {
  const blocksFor = ({ kv }: Opened) => Math.ceil(TOKENS / kv.layout.tokensPerBlock);
  using source = from.transceiver.pool.allocate(blocksFor(from));
  using target = to.transceiver.pool.allocate(blocksFor(to));
  writePlaced(from, number, source.ids, 0, TOKENS);
  const sending = from.transceiver.send({ requestId: requestId(number), tokens: TOKENS, blocks: source });
  await to.transceiver.receive({ state: sending.state, blocks: target }).done;
  await sending.done;
  expect(findWrongPlaced(to, number, target.ids, [0, TOKENS], TOKENS)).toBeNull();
}

test.skipIf(!hasPython).each(Object.entries(placements))(
  "%s, adopted, is read and written in place",
  async (_, kind) => {
    const { placement, bytes } = kind;
    using memory = await ForeignMemory.open(bytes + 4096);
    await using adopted = await open({ adopt: [{ fd: memory.fd, offset: 4096, bytes }], blocks: BLOCKS, placement });
    await using own = await open({ memory: "host", blocks: BLOCKS });
    await using other = await open({ memory: "host", blocks: 4, order: "NHD" }, { ...layout, tokensPerBlock: 16 });
    for (const [number, peer] of [own, other].entries()) {
      await move(adopted, peer, 2 * number + 1);
      await move(peer, adopted, 2 * number + 2);
    }
  },
);

test.skipIf(!hasPython)("a placement that does not fit its layout or its memory is refused by name", async () => {
  const { placement, bytes } = placements["one tensor, [2, layers, blocks, tokens, heads, headDim]"] as {
    placement: Placement;
    bytes: number;
  };
  using memory = await ForeignMemory.open(bytes);
  const { bases, strides } = placement.kv as Placement[string];
  const refused = async (changed: Placement, words: RegExp, size = bytes): Promise<void> => {
    const pool = { adopt: [{ fd: memory.fd, offset: 0, bytes: size }], blocks: BLOCKS, placement: changed };
    await expect(open(pool)).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: expect.stringMatching(words) });
  };
  await refused({}, /options\.pool\.placement .*it lacks the group kv/);
  await refused({ kv: { bases, strides }, v: { bases, strides } }, /placement\.v .*the layout has no such group/);
  await refused({ kv: { bases: bases.slice(1), strides } }, /placement\.kv\.bases .*there are 3 for 4 layers/);
  await refused(
    { kv: { bases, strides: { ...strides, head: undefined } } },
    /placement\.kv\.strides\.head .*it is missing/,
  );
  await refused({ kv: { bases, strides: { ...strides, token: 8 } } }, /overlap/);
  await refused({ kv: { bases: [0, 0, 1000, 2000], strides } }, /overlap/);
  await refused({ kv: { bases, strides: { ...strides, plane: 1 << 20 } } }, /outside the pool/);
  await refused(placement, /outside the pool of 4096 bytes/, 4096);
});
