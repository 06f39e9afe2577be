import { setImmediate } from "node:timers/promises";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { requestId } from "../ids.ts";
import { BlockHold } from "../kv/pool.ts";
import { forcedPaths } from "../nixl/choice.ts";
import type { OpenOptions, TransferReport } from "./api.ts";
import { KvTransceiver } from "./transceiver.ts";

/** Contiguous bytes at both ends of one copy. */
export const probePieces = [4096, 65_536, 1 << 20] as const;

/** Of both pools, and of the requests that GB/s are measured with. */
const POOL_BYTES = 32 << 20;
/** One token a block: 2 planes of one head of 1024 values of 2 bytes. */
const BLOCK_BYTES = 4096;
const BLOCKS = POOL_BYTES / BLOCK_BYTES;
const layout = { layers: 1, kvHeads: 1, headDim: 1024, dtype: "f16", tokensPerBlock: 1, attention: "mha" } as const;
/** Each after one that is not counted: connection and page tables are warm then. */
const BULK_ROUNDS = 3;
const SINGLE_ROUNDS = 32;
/** An offer that nobody fetches, and any single transfer. */
const TRANSFER_MS = 20_000;
/** Pages that are touched between two turns of the event loop. */
const FILL_STEP = 256;

/** How the transceiver that is probed was opened; the probe has a pool, a control port and an agent of its own. */
export type ProbeSetting = Pick<
  OpenOptions,
  "config" | "path" | "sameHost" | "authToken" | "socketDir" | "instance"
> & {
  readonly listen?: NonNullable<OpenOptions["listen"]> | undefined;
};

/** null: whichever the two sides would take. */
export const ProbePath = z.enum(forcedPaths).nullable();
export type ProbePath = z.infer<typeof ProbePath>;

const states = z.array(z.string().max(4096)).min(2).max(64);
/** What the side that is read hands to the side that reads: the rights to fetch, each once. */
export const ProbeOffers = z.object({
  pieces: z
    .array(z.object({ pieceBytes: z.int().min(BLOCK_BYTES).max(POOL_BYTES), bulk: states, single: states }))
    .min(1)
    .max(8),
});
export type ProbeOffers = z.infer<typeof ProbeOffers>;

const rate = z.number().min(0);
export const ProbedPath = z.object({
  path: z.string().max(64),
  pieces: z.array(
    z.object({
      pieceBytes: z.int().min(1),
      /** One request of one piece, alone: from the call to its resolution, median. */
      latencyUs: rate,
      /** Native time of the copy in it, median. */
      moveUs: rate,
      /** Bytes over native time of requests of 32 MiB in scattered pieces, decimal, median. */
      gbPerS: rate,
    }),
  ),
});
export type ProbedPath = z.infer<typeof ProbedPath>;

const openProbe = (setting: ProbeSetting): Promise<KvTransceiver> => {
  const { config, listen, ...rest } = setting;
  return KvTransceiver.open({
    ...rest,
    ...(listen === undefined ? {} : { listen: { ...listen, port: 0 } }),
    config: { ...config, kv_transfer_timeout_ms: TRANSFER_MS },
    layout,
    pool: { memory: "host", blocks: BLOCKS },
    verify: "off",
  });
};

/** Of the source: the n-th piece lies at this place, so that no two pieces are neighbours at both ends. */
function placesOf(pieceBytes: number): readonly number[] {
  const count = POOL_BYTES / pieceBytes;
  // Odd, and `count` is a power of 2: every place once.
  const stride = 2 * Math.floor(count * 0.3) + 1;
  return Array.from({ length: count }, (_, at) => (at * stride) % count);
}

/** The side that is read: a pool of its own, filled with known words, and offers of it. Nothing of the instance beside it is touched. */
export class ProbeSource implements AsyncDisposable {
  readonly offers: ProbeOffers;
  readonly #transceiver: KvTransceiver;

  private constructor(transceiver: KvTransceiver, offers: ProbeOffers) {
    this.#transceiver = transceiver;
    this.offers = offers;
  }

  /** @throws KvError as KvTransceiver.open */
  static async open(setting: ProbeSetting): Promise<ProbeSource> {
    const transceiver = await openProbe(setting);
    try {
      const { pool } = transceiver;
      using all = pool.allocate(BLOCKS);
      const words = new Uint32Array(transceiver.memory);
      for (const [at, id] of all.ids.entries()) {
        words.fill(id + 1, (id * BLOCK_BYTES) / 4, ((id + 1) * BLOCK_BYTES) / 4);
        if (at % FILL_STEP === 0) await setImmediate();
      }
      let last = 0;
      const pieces = probePieces.map((pieceBytes) => {
        const blocks = pieceBytes / BLOCK_BYTES;
        const places = placesOf(pieceBytes);
        using scattered = BlockHold.join(
          pool,
          places.map((place) => all.share(place * blocks, (place + 1) * blocks)),
        );
        const offer = (tokens: number): string => {
          const sending = transceiver.send({ requestId: requestId(++last), tokens, blocks: scattered });
          // Whoever reads says what became of it.
          sending.done.catch(() => {});
          return sending.state;
        };
        return {
          pieceBytes,
          bulk: Array.from({ length: BULK_ROUNDS + 1 }, () => offer(BLOCKS)),
          single: Array.from({ length: SINGLE_ROUNDS + 1 }, () => offer(blocks)),
        };
      });
      return new ProbeSource(transceiver, { pieces });
    } catch (error) {
      await transceiver.close();
      throw error;
    }
  }

  close(): Promise<void> {
    return this.#transceiver.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

const median = (values: readonly number[]): number =>
  [...values].sort((one, other) => one - other)[values.length >> 1] ?? 0;

/**
 * The side that reads: fetches every offer into a pool of its own, one after the other, and looks whether the bytes are right.
 * @throws KvError as KvTransceiver.open, and what `receive` rejects with; INTERNAL for wrong bytes
 */
export async function readProbe(setting: ProbeSetting, offers: ProbeOffers, signal?: AbortSignal): Promise<ProbedPath> {
  await using transceiver = await openProbe(setting);
  using all = transceiver.pool.allocate(BLOCKS);
  const words = new Uint32Array(transceiver.memory);
  const fetched = async (state: string, blocks: number): Promise<TransferReport & { readonly callMs: number }> => {
    using into = all.share(0, blocks);
    const startedMs = performance.now();
    const receiving = transceiver.receive({ state, blocks: into, ...(signal && { signal }) });
    const report = await receiving.done;
    const callMs = performance.now() - startedMs;
    await receiving.released;
    return { ...report, callMs };
  };
  const pieces: ProbedPath["pieces"] = [];
  let path = "none";
  for (const { pieceBytes, bulk, single } of offers.pieces) {
    const bulkReports: TransferReport[] = [];
    for (const state of bulk) bulkReports.push(await fetched(state, BLOCKS));
    checkBytes(words, pieceBytes, all.ids);
    const singleReports = [];
    for (const state of single) singleReports.push(await fetched(state, pieceBytes / BLOCK_BYTES));
    path = bulkReports[0]?.path ?? path;
    const [, ...warm] = bulkReports;
    const [, ...alone] = singleReports;
    pieces.push({
      pieceBytes,
      latencyUs: median(alone.map(({ callMs }) => callMs * 1000)),
      moveUs: median(alone.map(({ movingMs }) => movingMs * 1000)),
      gbPerS: median(warm.map(({ gbPerS }) => gbPerS)),
    });
  }
  return { path, pieces };
}

/** The first and the last word of each block. */
function checkBytes(words: Uint32Array, pieceBytes: number, ids: readonly number[]): void {
  const places = placesOf(pieceBytes);
  const blocks = pieceBytes / BLOCK_BYTES;
  for (const [at, id] of ids.entries()) {
    const wanted = (places[Math.floor(at / blocks)] ?? 0) * blocks + (at % blocks) + 1;
    const first = (id * BLOCK_BYTES) / 4;
    const last = first + BLOCK_BYTES / 4 - 1;
    if (words[first] === wanted && words[last] === wanted) continue;
    const why = `block ${at} of a probe in pieces of ${pieceBytes} bytes has ${words[first]}, not ${wanted}`;
    throw new KvError("INTERNAL", { where: "path probe", why });
  }
}
