import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { FrameChannel } from "../../../src/transceiver/frame_channel.ts";

/** What a channel uses of a socket; what the peer sends is given by `push`. */
class FakeSocket extends Duplex {
  setNoDelay(): void {}
  unref(): void {}
  override _read(): void {}
  override _write(_chunk: unknown, _encoding: string, done: () => void): void {
    done();
  }
}

function frames(from: number, to: number): Buffer {
  return Buffer.concat(Array.from({ length: to - from }, (_, index) => Buffer.of(0, 0, 0, 1, from + index)));
}

/** A listener that takes `ms` for each frame. */
function open(ms: number) {
  const socket = new FakeSocket();
  const seen: (number | string)[] = [];
  let told: (why: string) => void = () => {};
  const closed = new Promise<string>((resolve) => {
    told = resolve;
  });
  const listener = {
    frame: (bytes: Uint8Array) => {
      const end = performance.now() + ms;
      while (performance.now() < end);
      seen.push(bytes[0] ?? -1);
    },
    closed: (why: string) => {
      seen.push("closed");
      told(why);
    },
  };
  const channel = new FrameChannel(socket as unknown as Socket, listener, () => performance.now());
  return { socket, seen, closed, channel };
}

const numbers = (to: number): number[] => Array.from({ length: to }, (_, index) => index);

describe("a burst of frames", () => {
  it("leaves the event loop its turns, stops reading meanwhile, and keeps its order", async () => {
    const { socket, seen, closed } = open(0.3);
    socket.push(frames(0, 20));
    await turn();
    expect(seen.length).toBeGreaterThan(0);
    expect(seen.length).toBeLessThan(20);
    expect(socket.isPaused()).toBe(true);
    socket.push(frames(20, 30));
    socket.push(null);
    await closed;
    expect(seen).toEqual([...numbers(30), "closed"]);
  });

  it("that came before the connection broke is handled before the loss is told", async () => {
    const { socket, seen, closed } = open(0.3);
    socket.push(frames(0, 20));
    await turn();
    socket.destroy(new Error("reset"));
    expect(await closed).toBe("reset");
    expect(seen).toEqual([...numbers(20), "closed"]);
  });

  it("is dropped where this side closes in the middle of it", async () => {
    const { socket, seen, channel } = open(0.3);
    socket.push(frames(0, 20));
    await turn();
    const handled = seen.length;
    channel.close("enough");
    expect(seen).toEqual([...numbers(handled), "closed"]);
    await turn();
    await turn();
    expect(seen).toHaveLength(handled + 1);
  });
});
