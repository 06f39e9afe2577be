import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { additional, resourcesOf } from "./held_resources.ts";

const here = { child: process };

it("what a process holds more than before is named: files by their path, sockets by what they connect", async () => {
  const path = fileURLToPath(import.meta.url);
  const before = resourcesOf(here);
  const file = openSync(path, "r");
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const client = connect(port, "127.0.0.1");
  const [served] = await once(server, "connection");
  const now = resourcesOf(here);
  const told = additional(here, before, now);
  expect(told).toContain(path);
  expect(told).toContainEqual(
    expect.stringMatching(new RegExp(`^socket:\\[\\d+\\] tcp port ${port} to 0 in state 0A$`)),
  );
  expect(told).toContainEqual(expect.stringMatching(new RegExp(`tcp port \\d+ to ${port} in state 01$`)));
  expect(now.descriptors).toBe(before.descriptors + 4);
  // The same without the connections of the HTTP server there.
  expect(resourcesOf({ ...here, url: `http://127.0.0.1:${port}` }).descriptors).toBe(before.descriptors + 2);
  closeSync(file);
  client.destroy();
  served.destroy();
  server.close();
  await once(server, "close");
  expect(additional(here, now, resourcesOf(here))).toEqual([]);
});
