import { rmSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { bringNixl } from "./nixl_wheel.ts";

interface Pair {
  readonly sender: string;
  readonly receiver: string;
  readonly works: boolean;
}

/** Seen to move bytes and notifications both ways, or not (spec nixl.md section 6.1); more pairs by npm run test:nixl-matrix. */
const pairs: readonly Pair[] = [
  { sender: "1.5.1", receiver: "1.4.1", works: true },
  { sender: "1.4.1", receiver: "1.5.1", works: true },
  { sender: "1.5.1", receiver: "1.3.0", works: false },
  { sender: "1.3.0", receiver: "1.5.1", works: false },
];

const bothNamed = (sender: string, receiver: string): string =>
  `NIXL ${receiver} (UCX) of the receiver and NIXL ${sender} (UCX) of the sender are not known to work together`;

describe("peers with NIXL of two versions", () => {
  const peers = new Peers();
  const before = new Map(["KVT_NIXL_LIBRARY", "KVT_PATH"].map((name) => [name, process.env[name]]));
  afterAll(async () => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    await peers[Symbol.asyncDispose]();
  });

  async function openWith(library: string): Promise<Peer> {
    Object.assign(process.env, { KVT_NIXL_LIBRARY: library, KVT_PATH: "nixl_direct" });
    return await peers.open();
  }

  it("are told of both versions too where another path was tried first", { timeout: 90_000 }, async ({ skip }) => {
    const [from, to] = [bringNixl("1.3.0"), bringNixl("1.5.1")];
    if (!("library" in from)) return skip(from.missing);
    if (!("library" in to)) return skip(to.missing);
    await using apart = new Peers();
    const config = { backend: "NIXL" } as const;
    delete process.env.KVT_PATH;
    process.env.KVT_NIXL_LIBRARY = from.library;
    const source = await apart.open({ config });
    // Nobody gets its memory's file any more.
    rmSync(apart.socketDir, { recursive: true });
    process.env.KVT_NIXL_LIBRARY = to.library;
    const target = await peers.open({ config });
    const { state } = await source.send({ request: 1, tokens: 96 });
    await target.receive({ id: 1, state, tokens: 96 });
    const received = await target.received(1);
    expect(received).toMatchObject({ code: "NO_PATH", message: expect.stringContaining(bothNamed("1.3.0", "1.5.1")) });
  });

  it.for(pairs)(
    "$receiver pulls from $sender: $works",
    { timeout: 90_000 },
    async ({ sender, receiver, works }, { skip }) => {
      const [from, to] = [bringNixl(sender), bringNixl(receiver)];
      if (!("library" in from)) return skip(from.missing);
      if (!("library" in to)) return skip(to.missing);
      const [source, target] = [await openWith(from.library), await openWith(to.library)];
      const { state } = await source.send({ request: 1, tokens: 96 });
      await target.receive({ id: 1, state, tokens: 96 });
      const received = await target.received(1);
      if (works) {
        expect(received).toMatchObject({ wrong: 0, report: { tokens: 96, path: "nixl_direct" } });
      } else {
        expect(received).toMatchObject({
          code: "NO_PATH",
          // At HELLO: nothing was tried.
          message: expect.stringMatching(/^no path moves KV between this process and \S+: NIXL /),
        });
        expect(received).toMatchObject({ message: expect.stringContaining(bothNamed(sender, receiver)) });
      }
      await Promise.all([source.kill(), target.kill()]);
    },
  );
});
