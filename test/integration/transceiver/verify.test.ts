import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import type { VerifyMode } from "../../../src/transceiver/verification.ts";

const layout = { layers: 4, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 32, attention: "gqa" } as const;
const BLOCKS = 5;
const TOKENS = 150;

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-verify-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

interface Pair extends AsyncDisposable {
  readonly sender: KvTransceiver;
  readonly receiver: KvTransceiver;
  /** Runs with each attempt of a pull once all its bytes are there, before anything has looked at them. */
  onArrival: (arrived: { readonly attempt: number; readonly memory: Uint8Array }) => void;
  transfer(
    skipTokens?: number,
  ): Promise<{ readonly code: string; readonly attempts: number; readonly message: string }>;
}

/** Two real transceivers; a byte is flipped between the end of a read and the comparison, as a bad transport would have. */
async function pair(verify: VerifyMode): Promise<Pair> {
  const options = { layout, pool: { memory: "host", blocks: 16 }, socketDir, verify } as const;
  let attempt = 0;
  let requests = 0;
  const sender = await KvTransceiver.open(options);
  const receiver: KvTransceiver = await KvTransceiver.open(options, {
    observer: ({ role, event }) => {
      if (role !== "receiver" || (event !== "allRead" && event !== "allAccepted")) return;
      one.onArrival({ attempt: attempt++, memory: new Uint8Array(receiver.memory) });
    },
  });
  new Uint8Array(sender.memory).forEach((_, at, bytes) => {
    bytes[at] = (at * 31) ^ (at >> 8);
  });
  const one: Pair = {
    sender,
    receiver,
    onArrival: () => {},
    async transfer(skipTokens = 0) {
      attempt = 0;
      using source = sender.pool.allocate(BLOCKS);
      using target = receiver.pool.allocate(BLOCKS);
      const sending = sender.send({ requestId: requestId(++requests), tokens: TOKENS, blocks: source });
      const sent = sending.done.catch(() => {});
      const outcome = await receiver.receive({ state: sending.state, blocks: target, skipTokens }).done.then(
        ({ attempts }) => ({ code: "ok", attempts, message: "" }),
        (error) => ({ code: error.code as string, attempts: 0, message: error.message as string }),
      );
      await sent;
      return outcome;
    },
    async [Symbol.asyncDispose]() {
      await receiver.close();
      await sender.close();
    },
  };
  return one;
}

/** A place in block number `block`, which is block id `block` of these pools; a row is one layer, plane and head. */
const placeOf = (block: number, row: number, token: number, byte: number): number =>
  block * 4 * 2 * 2 * 32 * 64 + row * 32 * 64 + token * 64 + byte;

const flip = (memory: Uint8Array, at: number, mask: number): void => {
  memory[at] = (memory[at] ?? 0) ^ mask;
};

describe("a byte that is flipped on its way", () => {
  it("is found by `full` wherever it is, read again once, and then right", async () => {
    await using one = await pair("full");
    let found = 0;
    for (const [block, row, token, byte] of [
      [0, 0, 0, 0],
      [1, 15, 31, 63],
      [2, 7, 13, 40],
      [4, 15, 21, 63],
      [4, 3, 0, 1],
    ] as const) {
      one.onArrival = ({ attempt, memory }) => {
        if (attempt === 0) flip(memory, placeOf(block, row, token, byte), 0x04);
      };
      expect(await one.transfer()).toMatchObject({ code: "ok", attempts: 2 });
      expect(one.receiver.stats().mismatches).toBe(++found);
      const source = new Uint8Array(one.sender.memory);
      const arrived = new Uint8Array(one.receiver.memory);
      const at = placeOf(block, row, token, byte);
      expect(arrived[at]).toBe(source[at]);
    }
    expect(one.receiver.pool.free).toBe(16);
    expect(one.sender.pool.free).toBe(16);
  });

  it("fails the transfer when it is there again, naming the block, and both sides get their blocks back", async () => {
    await using one = await pair("full");
    one.onArrival = ({ memory }) => {
      flip(memory, placeOf(3, 2, 5, 7), 0xff);
    };
    const { code, message } = await one.transfer();
    expect(code).toBe("DIGEST_MISMATCH");
    expect(message).toContain("block 3 (number 3 of the sequence, tokens 96 to 128, the sender's block 3)");
    expect(one.receiver.stats()).toMatchObject({ mismatches: 2, receives: { failed: 1 }, blocks: { free: 16 } });
    expect(one.sender.pool.free).toBe(16);
  });

  it("beside the tokens that are pulled is nobody's business", async () => {
    await using one = await pair("full");
    one.onArrival = ({ memory }) => {
      // Token 150 of 150, and token 39 of a pull from 40 on.
      flip(memory, placeOf(4, 15, 22, 0), 1);
      flip(memory, placeOf(1, 0, 7, 0), 1);
    };
    expect(await one.transfer(40)).toMatchObject({ code: "ok", attempts: 1 });
  });

  it("is not looked for with `off`", async () => {
    await using one = await pair("off");
    one.onArrival = ({ memory }) => {
      flip(memory, 0, 1);
    };
    expect(await one.transfer()).toMatchObject({ code: "ok", attempts: 1 });
    expect(one.receiver.stats().mismatches).toBe(0);
  });

  it("is found by `sampled` exactly when its block is in the sample, whatever else moves", async () => {
    await using one = await pair("sampled");
    const rounds = 400;
    let found = 0;
    for (let round = 0; round < rounds; round++) {
      one.onArrival = ({ attempt, memory }) => {
        if (attempt === 0) flip(memory, placeOf(2, round % 16, round % 32, round % 64), 0x20);
      };
      const { code, attempts } = await one.transfer();
      expect(code).toBe("ok");
      if (attempts === 2) found++;
    }
    expect(one.receiver.stats().mismatches).toBe(found);
    // Ids are random: outside of these bounds once in a thousand million runs (binomial, 400 tries of 1/16).
    expect(found).toBeGreaterThan(2);
    expect(found).toBeLessThan(60);
  });
});
