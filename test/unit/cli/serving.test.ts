import { expect, it } from "vitest";
import { ExitCode } from "../../../src/cli/command.ts";
import { serveUntilSignal } from "../../../src/cli/serving.ts";
import { createLogger } from "../../../src/observability/log.ts";

const log = createLogger({ name: "test", level: "silent" as "error" });

it("a server that can't serve any more is drained for a while, and its process ends with a failure for the supervisor", async () => {
  const closed: (number | undefined)[] = [];
  let tell: (why: string) => void = () => {};
  const unusable = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const close = async (options?: { readonly drainMs?: number }): Promise<void> => {
    closed.push(options?.drainMs);
  };
  const code = serveUntilSignal(log, async () => ({ unusable, close }));
  await new Promise((resolve) => setImmediate(resolve));
  expect(closed).toEqual([]);
  tell("no NIXL agent is left");
  expect(await code).toBe(ExitCode.failure);
  expect(closed).toEqual([30_000]);
});

it("a signal ends a server in good order, with all the time it takes", async () => {
  const closed: (number | undefined)[] = [];
  const close = async (options?: { readonly drainMs?: number }): Promise<void> => {
    closed.push(options?.drainMs);
  };
  const code = serveUntilSignal(log, async () => ({ unusable: new Promise<string>(() => {}), close }));
  await new Promise((resolve) => setImmediate(resolve));
  process.emit("SIGTERM");
  expect(await code).toBe(ExitCode.ok);
  expect(closed).toEqual([undefined]);
});
