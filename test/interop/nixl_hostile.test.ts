import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FrameSplitter } from "../../src/transceiver/frame_channel.ts";
import { decodeState, encodeState } from "../../src/transceiver/opaque_state.ts";
import { decodeSenderFrame, encodeFrame, FRAME_LIMIT } from "../../src/transceiver/protocol.ts";
import { BLOCKS, type Peer, Peers, type Resources } from "../integration/transceiver/peer_process.ts";
import { until } from "../integration/waits.ts";
import { bringNixl, setEnvironment } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";
/** By hand: KVT_HOSTILE_DESCRIPTORS=100000, 10 minutes. */
const COUNT = Number(process.env.KVT_HOSTILE_DESCRIPTORS ?? 1_000);
const WARM = COUNT / 4;

/** Seeded, so that a failure can be run again. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Stands before a sender and gives receivers another descriptor than the sender did. */
class Forger implements AsyncDisposable {
  readonly #server: Server;
  forge: (descriptor: Uint8Array) => Uint8Array = (descriptor) => descriptor;

  private constructor(target: string) {
    const { hostname, port } = new URL(target);
    this.#server = createServer((near) => {
      const far = connect(Number(port), hostname);
      const splitter = new FrameSplitter();
      for (const socket of [near, far]) {
        socket.on("error", () => {});
        socket.on("close", () => (socket === near ? far : near).destroy());
      }
      near.pipe(far);
      far.on("data", (chunk) => {
        const frames = splitter.push(chunk, FRAME_LIMIT);
        if (typeof frames === "string") throw new Error(frames);
        for (const frame of frames) near.write(this.#passed(frame));
      });
    });
  }

  static async open(target: string): Promise<Forger> {
    const forger = new Forger(target);
    forger.#server.listen(0, "127.0.0.1");
    await once(forger.#server, "listening");
    return forger;
  }

  /** The same offer, to be fetched through here. */
  through(state: string): string {
    const offer = decodeState(state);
    const tcp = `tcp://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return encodeState({ ...offer, ranks: offer.ranks.map((rank) => ({ ...rank, tcp, unix: null })) });
  }

  #passed(frame: Uint8Array): Buffer {
    const decoded = decodeSenderFrame(frame);
    const body =
      decoded.ok && decoded.frame.type === "WELCOME"
        ? encodeFrame({ ...decoded.frame, descriptor: this.forge(decoded.frame.descriptor) })
        : frame;
    const head = Buffer.alloc(4);
    head.writeUInt32BE(body.length);
    return Buffer.concat([head, body]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
  }
}

/** Changed bytes, a piece moved, cut short or made longer; never the same. */
function mutated(descriptor: Uint8Array, random: (below: number) => number): Uint8Array {
  const bytes = Uint8Array.from(descriptor);
  const at = random(bytes.length);
  switch (random(8)) {
    case 0:
      return bytes.subarray(0, at);
    case 1:
      return Buffer.concat([bytes, Buffer.alloc(1 + random(4096), random(256))]);
    case 2:
      return Buffer.concat([bytes.subarray(at), bytes.subarray(0, at)]).fill(random(256), 0, 1);
    case 3:
      return bytes.fill(random(2) * 255, at, at + 1 + random(64)).fill(bytes[0] === 0 ? 1 : 0, 0, 1);
    default:
      for (let changes = 1 + random(4), place = at; changes > 0; changes--, place = random(bytes.length)) {
        bytes[place] = (bytes[place] ?? 0) ^ (1 + random(255));
      }
      return bytes;
  }
}

describe.skipIf(library === "")(`descriptors that nobody wrote${without}`, () => {
  const peers = new Peers();
  let restore: () => void;
  let sender: Peer;
  let receiver: Peer;
  beforeAll(async () => {
    restore = setEnvironment({ KVT_NIXL_LIBRARY: library, KVT_PATH: "nixl_staged" });
    // The one offer outlives them all.
    const config = { kv_transfer_timeout_ms: 3_600_000 };
    [sender, receiver] = await Promise.all([peers.open({ config }), peers.open({ config })]);
  }, 60_000);
  afterAll(async () => {
    restore();
    await peers[Symbol.asyncDispose]();
  });

  it(`are refused, ${COUNT.toLocaleString("en")} of them, and leave nothing behind`, {
    timeout: 60_000 + COUNT * 20,
  }, async () => {
    await using forger = await Forger.open(sender.endpoints.tcp);
    const random = randomNumbers(20_261_201);
    const { state } = await sender.send({ request: 1, tokens: 64 });
    const forged = forger.through(state);
    let told = 0;
    forger.forge = (descriptor) => {
      told++;
      for (;;) {
        const changed = mutated(descriptor, random);
        if (Buffer.compare(changed, descriptor) !== 0) return changed;
      }
    };
    let warm: Resources | undefined;
    for (let id = 1; id <= COUNT; id++) {
      if (id === WARM) warm = await receiver.resources();
      await receiver.receive({ id, state: forged, tokens: 64 });
      const ended = await receiver.received(id);
      expect({ id, ...ended }).toMatchObject({
        code: "NO_PATH",
        message: expect.stringMatching(/its descriptor is not understood|it has no path that this side has/),
      });
    }
    expect(told).toBeGreaterThanOrEqual(COUNT);
    const { blocks, receives } = await receiver.stats();
    expect([blocks.free, blocks.quarantined, receives.open]).toEqual([BLOCKS, 0, 0]);
    await until("sockets are closed", async () => (await receiver.resources()).fds <= (warm?.fds ?? 0));
    const { rssAnonKib } = await receiver.resources();
    // V8's heap breathes.
    expect(rssAnonKib - (warm?.rssAnonKib ?? 0)).toBeLessThan(24 << 10);
    forger.forge = (descriptor) => descriptor;
    await receiver.receive({ id: COUNT + 1, state: forged, tokens: 64 });
    // The pattern is of the request, not of the receive.
    expect(await receiver.received(COUNT + 1, 1)).toMatchObject({ wrong: 0, report: { path: "nixl_staged" } });
  });
});
