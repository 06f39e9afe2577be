import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { hideKey } from "../../../src/cli/demo_story.ts";
import { paintFor } from "../../../src/cli/paint.ts";
import { freePorts } from "../../../src/cli/ports.ts";
import { renderTimeline, spansOf } from "../../../src/cli/timeline.ts";
import { isKvError } from "../../../src/errors.ts";
import { capturedTerminal } from "./captured_terminal.ts";

const story = new URL("../../../examples/basic/story.txt", import.meta.url);
const plain = paintFor(capturedTerminal());

describe("the hidden pass key", () => {
  it("stands once in the story, between two sentences, at many places", () => {
    const places = new Set<number>();
    for (let i = 0; i < 200; i++) {
      const { key, excerpt, story: text } = hideKey(story);
      expect(key).toMatch(/^\d{5}$/);
      expect(text.split(key)).toHaveLength(2);
      const before = text.slice(0, text.indexOf(" The pass key is"));
      expect(before).toMatch(/\.$/);
      // An odd number of quotation marks would put the sentence into somebody's mouth.
      expect(before.split('"').length % 2).toBe(1);
      expect(text).toContain(`${excerpt.before}${excerpt.key}${excerpt.after}`);
      places.add(before.length);
    }
    expect(places.size).toBeGreaterThan(20);
  });
});

describe("the time line", () => {
  const member = (name: string, pid: number) => ({ name, pid, url: "", port: 0, logFile: "" });
  const request = { event: "request", queue_ms: 0.25, prompt_tokens: 1500 } as const;
  const context = {
    member: member("context 2", 11),
    request: { ...request, role: "context", prefill_ms: 80, decode_ms: 0, output_tokens: 1 },
    received: undefined,
  } as const;
  const generation = {
    member: member("generation", 12),
    request: { ...request, role: "generation", prefill_ms: 0, decode_ms: 20, output_tokens: 12 },
    received: {
      event: "transfer",
      direction: "receive",
      bytes: 3_850_240,
      blocks: 47,
      ms: 1.5,
      moving_ms: 0.8,
      gb_per_s: 4.8128,
      path: "shared_memory",
    },
  } as const;

  it("shows what the workers reported, in order", () => {
    expect(spansOf(context, generation)).toEqual([
      { name: "queue", ms: 0.5, text: "waiting for a turn, both workers" },
      { name: "prefill", ms: 80, text: "1,500 tokens by context 2 (pid 11)" },
      { name: "transfer", ms: 1.5, text: "47 blocks, 3.85 MB moved in 800 µs: 4.8 GB/s over shared_memory" },
      { name: "decode", ms: 20, text: "12 tokens by generation (pid 12)" },
    ]);
  });

  it("leaves out what no worker reported instead of inventing it", () => {
    const silent = { ...generation, request: undefined, received: undefined };
    expect(spansOf(context, silent).map(({ name }) => name)).toEqual(["prefill"]);
  });

  it("draws bars that follow each other and stay inside the line", () => {
    const lines = renderTimeline(spansOf(context, generation), plain);
    for (const line of lines) expect(line.lastIndexOf("█")).toBeLessThan(60);
    const starts = lines.map((line) => line.indexOf("█"));
    expect(starts).toEqual([...starts].sort((a, b) => a - b));
    expect(renderTimeline([{ name: "queue", ms: 0, text: "" }], plain)[0]).toContain("█");
  });
});

describe("ports", () => {
  it("are different and free", async () => {
    const ports = await freePorts(6);
    expect(new Set(ports).size).toBe(6);
    expect(await freePorts(6, ports)).toEqual(ports);
  });

  it("are none that the system hands out by itself, before their process binds them", async () => {
    const [first = 0] = readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split(/\s/).map(Number);
    for (const port of await freePorts(6)) expect(port).toBeLessThan(first);
  });

  it("are given to one caller only, before their process binds them too", async () => {
    const many = 300;
    const ports = [...(await freePorts(many)), ...(await freePorts(many))];
    expect(new Set(ports).size).toBe(2 * many);
    // Other processes are told in the same way.
    const mark = connect(`\0kvt-port-${ports[0]}`);
    await once(mark, "connect");
    mark.destroy();
  });

  it("that are taken are refused as a bind failure", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "localhost", resolve));
    const address = server.address();
    const port = typeof address === "object" && address ? address.port : 0;
    const failure = await freePorts(1, [port]).catch((thrown: unknown) => thrown);
    server.close();
    expect(isKvError(failure, "BIND_FAILED")).toBe(true);
  });
});

describe("colours", () => {
  it("are off where the output is no terminal and with NO_COLOR, on when forced", () => {
    expect(plain.green("x")).toBe("x");
    expect(paintFor(capturedTerminal({ FORCE_COLOR: "1" })).green("x")).toBe("\x1b[32mx\x1b[0m");
    expect(paintFor(capturedTerminal({ FORCE_COLOR: "1", NO_COLOR: "1" })).green("x")).toBe("x");
  });
});
