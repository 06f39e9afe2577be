// Faults of a process that holds a transceiver, fired by a step of its own sessions and never by time. See Fault in peer_process.ts.
import { readFileSync } from "node:fs";

const STOP_LIMIT_MS = 10_000;

/** Blocks this process, so that it does nothing before the other one stands still. */
function awaitStop(pid) {
  const end = performance.now() + STOP_LIMIT_MS;
  while (!/ [Tt] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"))) {
    if (performance.now() > end) throw new Error(`process ${pid} did not stop within ${STOP_LIMIT_MS} ms`);
  }
}

export class FaultHooks {
  /** The fault that waits for its step; null: none. */
  armed = null;
  #fired;

  /** @param {(step: { state: string, requestId?: string }, fault: object) => void} fired called inside the step, the fault disarmed */
  constructor(fired) {
    this.#fired = fired;
  }

  /** Called at every step of every session, before its effects run. */
  observer = (step) => {
    const fault = this.armed;
    if (fault === null || fault.role !== step.role) return;
    if (fault.to === "DONE_WRITTEN" && step.to === "DRAIN" && step.from !== "DRAIN") {
      // Whoever would read the DONE stands still before it is written; the fault comes when it has left this process.
      for (const reader of [fault.reader].flat()) {
        process.kill(reader, "SIGSTOP");
        awaitStop(reader);
      }
      process.nextTick(() => queueMicrotask(() => this.#fire("DONE_WRITTEN", step.requestId)));
    }
    if (fault.to !== step.to || (fault.event !== undefined && fault.event !== step.event)) return;
    this.#fire(step.to, step.requestId);
  };

  /** The data plane with a place for faults behind every read that was posted. */
  plane = (plane) => {
    const read = (request, listener) => {
      const posted = plane.read(request, listener);
      if (this.armed?.to === "POSTED") this.#fire("POSTED");
      return posted;
    };
    return new Proxy(plane, {
      get: (_, name) =>
        name === "read" ? read : typeof plane[name] === "function" ? plane[name].bind(plane) : plane[name],
    });
  };

  #fire(state, requestId) {
    const fault = this.armed;
    if (fault === null) return;
    this.armed = null;
    this.#fired({ state, requestId }, fault);
  }
}
