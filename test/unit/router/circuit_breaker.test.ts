import { describe, expect, it } from "vitest";
import { CircuitBreaker } from "../../../src/router/circuit_breaker.ts";

const setup = () => {
  const time = { ms: 0 };
  const breaker = new CircuitBreaker({ nowMs: () => time.ms });
  const fail = (times: number): void => {
    for (let i = 0; i < times; i++) {
      breaker.started();
      breaker.failed();
    }
  };
  return { time, breaker, fail };
};

describe("circuit breaker", () => {
  it("opens at the fifth failure within 10 s, and not when they are spread wider", () => {
    const { time, breaker, fail } = setup();
    fail(4);
    expect(breaker.allows).toBe(true);
    time.ms = 10_001;
    fail(4);
    expect(breaker.allows).toBe(true);
    fail(1);
    expect(breaker.allows).toBe(false);
  });

  it("forgets failures after a success", () => {
    const { breaker, fail } = setup();
    fail(4);
    breaker.started();
    breaker.succeeded();
    fail(4);
    expect(breaker.allows).toBe(true);
  });

  it("lets one request through after 5 s, and stays open twice as long after each failure of it, up to 60 s", () => {
    const { time, breaker, fail } = setup();
    fail(5);
    for (const openMs of [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]) {
      time.ms += openMs - 1;
      expect(breaker.allows).toBe(false);
      time.ms += 1;
      expect(breaker.allows).toBe(true);
      breaker.started();
      expect(breaker.allows).toBe(false);
      breaker.failed();
    }
  });

  it("closes when the one request succeeds, and takes the next trial when it ended without a verdict", () => {
    const { time, breaker, fail } = setup();
    fail(5);
    time.ms = 5_000;
    breaker.started();
    breaker.ended();
    expect(breaker.allows).toBe(true);
    breaker.started();
    breaker.succeeded();
    expect(breaker.state).toBe("closed");
    fail(4);
    expect(breaker.allows).toBe(true);
  });
});
