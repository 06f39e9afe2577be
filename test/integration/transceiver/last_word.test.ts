import { once } from "node:events";
import { mkdtempSync, readlinkSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { FrameChannel } from "../../../src/transceiver/frame_channel.ts";

const folder = mkdtempSync(join(tmpdir(), "kvt-last-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const quiet = { frame: () => {}, closed: () => {} };

/** The dialling side's channel and the other side's socket, which reads nothing yet. */
async function pair(name: string) {
  const server = createServer({ pauseOnConnect: true });
  const path = join(folder, name);
  server.listen(path);
  await once(server, "listening");
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const dialled = connect(path);
  await once(dialled, "connect");
  const [other] = await accepted;
  return { channel: new FrameChannel(dialled, quiet, () => performance.now()), dialled, other, server };
}

it("the last frame of a side that closes is read by one that writes before it reads", async () => {
  const { channel, dialled, other, server } = await pair("a.sock");
  channel.send({ type: "ERROR", code: "BUSY", text: "the last word" });
  channel.end("it closes", 10_000);
  await once(dialled, "finish");
  const chunks: Buffer[] = [];
  other.on("data", (chunk: Buffer) => chunks.push(chunk));
  other.pause();
  const written = await new Promise<Error | null | undefined>((resolve) => other.write("ABORT", resolve));
  expect(written ?? null).toBeNull();
  other.resume();
  await once(other, "close");
  expect(Buffer.concat(chunks).toString("latin1")).toContain("the last word");
  if (!dialled.destroyed) await once(dialled, "close");
  server.close();
});

it("a channel's file descriptor is that of its socket while it has one", async () => {
  const { channel, dialled, other, server } = await pair("c.sock");
  const { fileDescriptor } = channel;
  expect(readlinkSync(`/proc/self/fd/${fileDescriptor}`)).toMatch(/^socket:/);
  channel.close("the test ends");
  expect(channel.fileDescriptor).toBeNull();
  expect(dialled.destroyed).toBe(true);
  other.destroy();
  server.close();
});

it("a side that closes waits no longer than its limit for one that neither reads nor closes", async () => {
  const { channel, dialled, other, server } = await pair("b.sock");
  channel.end("it closes", 20);
  await once(dialled, "close");
  expect(dialled.destroyed).toBe(true);
  other.destroy();
  server.close();
});
