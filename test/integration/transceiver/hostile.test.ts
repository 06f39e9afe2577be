import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { newEpoch, newToken, newTransferId, requestId } from "../../../src/ids.ts";
import { FrameSplitter } from "../../../src/transceiver/frame_channel.ts";
import { decodeState, encodeState } from "../../../src/transceiver/opaque_state.ts";
import { layoutDigest, newNonce, proofOf } from "../../../src/transceiver/proof.ts";
import {
  decodeSenderFrame,
  encodeFrame,
  FRAME_LIMIT,
  type Frame,
  type FrameOf,
  type SenderFrame,
} from "../../../src/transceiver/protocol.ts";
import { until } from "../waits.ts";
import { BLOCKS, layout, type Peer, Peers } from "./peer_process.ts";

/** Someone who speaks to the control port by hand. */
class Stranger {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  readonly epoch = newEpoch();
  bytesRead = 0;
  readonly #splitter = new FrameSplitter();
  readonly #frames: SenderFrame[] = [];
  #wake: () => void = () => {};

  /** @param address `tcp://host:port`, or the path of a unix socket */
  constructor(address: string) {
    if (address.startsWith("/")) this.socket = connect(address);
    else {
      const { hostname, port } = new URL(address);
      this.socket = connect(Number(port), hostname);
    }
    this.socket.on("data", (bytes) => this.#read(bytes));
    this.socket.on("error", () => {});
    this.closed = new Promise((resolve) => this.socket.on("close", () => resolve()));
  }

  write(frame: Frame): void {
    this.raw(encodeFrame(frame));
  }

  raw(body: Uint8Array): void {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(body.length);
    this.socket.write(Buffer.concat([head, body]));
  }

  /** The next frame, or null when the connection has ended. */
  async next(): Promise<SenderFrame | null> {
    for (;;) {
      const frame = this.#frames.shift();
      if (frame !== undefined) return frame;
      const more = new Promise<"more">((resolve) => {
        this.#wake = () => resolve("more");
      });
      if ((await Promise.race([more, this.closed])) !== "more" && this.#frames.length === 0) return null;
    }
  }

  async expect<Type extends SenderFrame["type"]>(type: Type): Promise<FrameOf<Type>> {
    const frame = await this.next();
    if (frame?.type !== type) throw new Error(`wanted ${type}, got ${JSON.stringify(frame)}`);
    return frame as unknown as FrameOf<Type>;
  }

  hello(parts: {
    readonly se: FrameOf<"HELLO">["se"];
    readonly key: string;
    readonly proof?: Uint8Array;
    readonly nonce?: Uint8Array;
  }): void {
    this.write({
      type: "HELLO",
      re: this.epoch,
      version: 1,
      instance: "stranger",
      rank: 0,
      layoutDigest: layoutDigest(layout),
      connection: 1,
      live: [],
      nonce: newNonce(),
      proof: new Uint8Array(0),
      ...parts,
    });
  }

  #read(bytes: Buffer): void {
    this.bytesRead += bytes.length;
    const frames = this.#splitter.push(bytes, FRAME_LIMIT);
    if (typeof frames === "string") throw new Error(frames);
    for (const frame of frames) {
      const decoded = decodeSenderFrame(frame);
      if (decoded.ok) this.#frames.push(decoded.frame);
    }
    this.#wake();
  }
}

/** Seeded, so that a failure can be run again. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe("strangers at the control port", () => {
  const peers = new Peers();
  let sender: Peer;
  let receiver: Peer;
  let next = 1;
  beforeAll(async () => {
    [sender, receiver] = await Promise.all([
      peers.open({ authToken: "cluster secret" }),
      peers.open({ authToken: "cluster secret" }),
    ]);
  });
  afterEach(async () => {
    const id = next++;
    const { state } = await sender.send({ request: id, tokens: 64 });
    await receiver.receive({ id, state, tokens: 64 });
    expect(await receiver.received(id)).toMatchObject({ wrong: 0, report: { tokens: 64 } });
    await sender.sent(id);
    expect(sender.log).toBe("");
  });
  afterAll(() => peers[Symbol.asyncDispose]());

  it("get no byte of a descriptor without the secret or the token of a live offer", async () => {
    const request = next++;
    await sender.send({ request, tokens: 64 });
    const wrong = [
      { key: "secret", secret: "guessed", code: "BAD_PROOF" },
      { key: requestId(request), secret: newToken(), code: "BAD_PROOF" },
      { key: requestId(123_456), secret: newToken(), code: "NO_OFFER" },
      { key: "uid", secret: "", code: "NO_OFFER" },
    ];
    for (const { key, secret, code } of wrong) {
      const stranger = new Stranger(sender.endpoints.tcp);
      const { nonce: challenge } = await stranger.expect("CHALLENGE");
      const before = stranger.bytesRead;
      const nonce = newNonce();
      stranger.hello({ se: newEpoch(), key, nonce, proof: proofOf("receiver", secret, challenge, nonce) });
      expect(await stranger.expect("ERROR")).toMatchObject({ code });
      expect(await stranger.next()).toBeNull();
      expect(stranger.bytesRead - before).toBeLessThan(100);
    }
    const early = new Stranger(sender.endpoints.tcp);
    await early.expect("CHALLENGE");
    const ids = { se: newEpoch(), re: newEpoch(), transferId: newTransferId() };
    early.write({ type: "DONE", ...ids, status: "ok", bytes: 1 });
    expect(await early.next()).toBeNull();
    expect((await sender.stats()).sends.open).toBe(1);
    await sender.call("cancelSend", { request });
  });

  it("are let in with the secret, and prove nothing by an old proof", async () => {
    const stranger = new Stranger(sender.endpoints.tcp);
    const { nonce: challenge } = await stranger.expect("CHALLENGE");
    const nonce = newNonce();
    const proof = proofOf("receiver", "cluster secret", challenge, nonce);
    stranger.hello({ se: newEpoch(), key: "secret", nonce, proof });
    const welcome = await stranger.expect("WELCOME");
    expect(Buffer.from(welcome.proof)).toEqual(Buffer.from(proofOf("sender", "cluster secret", challenge, nonce)));
    const replayed = new Stranger(sender.endpoints.tcp);
    await replayed.expect("CHALLENGE");
    replayed.hello({ se: newEpoch(), key: "secret", nonce, proof });
    expect(await replayed.expect("ERROR")).toMatchObject({ code: "BAD_PROOF" });
    // Frames that name another epoch of the sender move nothing and are told so.
    const stale = newEpoch();
    const transferId = newTransferId();
    stranger.write({ type: "DONE", se: stale, re: stranger.epoch, transferId, status: "ok", bytes: 1 });
    expect(await stranger.expect("STALE_EPOCH")).toMatchObject({ se: welcome.se, transferId });
    stranger.write({ type: "PING", se: welcome.se, re: stranger.epoch, n: 5 });
    expect(await stranger.expect("PONG")).toMatchObject({ n: 5 });
    stranger.socket.destroy();
  });

  it("hold at most eight connections, for one second, and may send 4 KiB", async () => {
    const held = Array.from({ length: 8 }, () => new Stranger(sender.endpoints.tcp));
    for (const stranger of held) await stranger.expect("CHALLENGE");
    expect(await new Stranger(sender.endpoints.tcp).next()).toBeNull();
    const started = performance.now();
    await Promise.all(held.map(({ closed }) => closed));
    expect(performance.now() - started).toBeLessThan(3_000);
    const loud = new Stranger(sender.endpoints.tcp);
    await loud.expect("CHALLENGE");
    loud.raw(new Uint8Array(5_000));
    expect(await loud.next()).toBeNull();
  });

  it("can listen in where TLS is off and the address is no loopback: one warning at open says so", async () => {
    const open = await peers.open({ listen: { host: "0.0.0.0", port: 0 } });
    for (const id of [1, 2]) {
      const { state } = await open.send({ request: id, tokens: 64 });
      await receiver.receive({ id: 1_000 + id, state, tokens: 64 });
      expect(await receiver.received(1_000 + id, id)).toMatchObject({ wrong: 0 });
    }
    expect(open.log.match(/cross the network in the clear/g)).toHaveLength(1);
    expect(receiver.log).toBe("");
    await open.kill();
  });

  it("break nothing with 100,000 random and mutated frames", { timeout: 120_000 }, async () => {
    const before = await sender.resources();
    const random = randomNumbers(20_261_125);
    const { unix } = sender.endpoints;
    if (unix === null) throw new Error("no unix socket");
    const ids = { re: newEpoch(), transferId: newTransferId() };
    let written = 0;
    while (written < 100_000) {
      const proven = random(4) > 0;
      const stranger = new Stranger(proven ? unix : sender.endpoints.tcp);
      const hello = await stranger.next();
      if (hello === null) continue;
      let se = newEpoch();
      if (proven) {
        stranger.hello({ se, key: "uid" });
        se = (await stranger.expect("WELCOME")).se;
      }
      const re = stranger.epoch;
      const head = { se, re, transferId: ids.transferId };
      const valid: Frame[] = [
        {
          type: "PULL",
          ...head,
          requestId: requestId(random(50)),
          token: newToken(),
          from: 0,
          to: 64,
          reader: { rank: 0, tpSize: 1, ppSize: 1 },
          paths: [],
        },
        { type: "RENEW", se, re, seq: random(1000), ids: [ids.transferId] },
        { type: "DONE", ...head, status: "ok", bytes: 4 },
        { type: "PING", se, re, n: random(1000) },
        { type: "PONG", se, re, n: 1 },
        { type: "ERROR", code: "PROTOCOL", text: "it is you" },
      ];
      // A broken frame ends the connection; what follows it on the same one is written all the same.
      for (let count = 1 + random(80); count > 0; count--, written++) {
        const frame = valid[random(valid.length)] as Frame;
        const raw = Buffer.from(encodeFrame(frame));
        const kind = random(8);
        if (kind === 0) raw.set(Buffer.from(Array.from({ length: raw.length }, () => random(256))));
        else if (kind < 3) raw[random(raw.length)] = random(256);
        if (kind === 3) stranger.socket.write(raw);
        else stranger.raw(kind === 4 ? raw.subarray(0, 1 + random(raw.length)) : raw);
      }
      stranger.socket.end();
      // The unproven ones are eight at most, so each is waited for; of the others a few, to bound the open sockets.
      if (!proven || random(8) === 0) await stranger.closed;
    }
    await until("descriptors are as at the start", async () => (await sender.resources()).fds <= before.fds + 2);
    const after = await sender.resources();
    expect(after.maps).toBe(before.maps);
    expect(after.rssAnonKib - before.rssAnonKib).toBeLessThan(96 * 1024);
    expect((await sender.stats()).blocks.free).toBe(BLOCKS);
  });
});

const openssl = (() => {
  try {
    execFileSync("openssl", ["version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
})();

describe.skipIf(!openssl)(
  "TLS on the control port (skipped without the openssl command, which makes the certificate)",
  () => {
    const peers = new Peers();
    const folder = mkdtempSync(join(tmpdir(), "kvt-tls-"));
    afterAll(async () => {
      await peers[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true, force: true });
    });

    it("moves a request's KV for who knows the certificate, and is refused by who does not", async () => {
      const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
      const subject = ["-subj", "/CN=kvt", "-addext", "subjectAltName=IP:127.0.0.1"];
      const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
      execFileSync("openssl", ["req", "-x509", ...kind, ...subject, "-keyout", key, "-out", cert], { stdio: "ignore" });
      const tls = { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
      const listen = { host: "127.0.0.1", port: 0 };
      const sender = await peers.open({ listen: { ...listen, tls } });
      expect(sender.endpoints.tcp).toMatch(/^tls:/);
      const { state } = await sender.send({ request: 1, tokens: 96 });
      const offer = decodeState(state);
      const overTls = encodeState({ ...offer, ranks: offer.ranks.map((rank) => ({ ...rank, unix: null })) });
      const unknowing = await peers.open();
      await unknowing.receive({ id: 1, state: overTls, tokens: 96 });
      expect(await unknowing.received(1)).toMatchObject({ code: "PEER_UNREACHABLE" });
      const knowing = await peers.open({ listen: { ...listen, tls: { ...tls, ca: tls.cert } } });
      await knowing.receive({ id: 1, state: overTls, tokens: 96 });
      expect(await knowing.received(1)).toMatchObject({ wrong: 0, report: { tokens: 96 } });
      expect(await sender.sent(1)).toHaveProperty("report");
    });
  },
);
