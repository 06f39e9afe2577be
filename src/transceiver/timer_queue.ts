import type { PlaneTimer } from "./data_plane.ts";

class Timer implements PlaneTimer {
  readonly atMs: number;
  readonly fire: () => void;
  /** Timers of the same time fire in the order in which they were set. */
  readonly order: number;
  readonly #queue: TimerQueue;
  /** Its place in the queue's heap; -1: fired or cleared. */
  place = -1;

  constructor(atMs: number, fire: () => void, order: number, queue: TimerQueue) {
    this.atMs = atMs;
    this.fire = fire;
    this.order = order;
    this.#queue = queue;
  }

  clear(): void {
    this.#queue.remove(this);
  }

  before(other: Timer): boolean {
    return this.atMs === other.atMs ? this.order < other.order : this.atMs < other.atMs;
  }
}

/**
 * All deadlines of one transceiver over a single alarm. Each transfer sets some, and almost none ever fires: most cost no more than their
 * place in this heap.
 */
export class TimerQueue {
  readonly #setAlarm: (atMs: number) => void;
  readonly #heap: Timer[] = [];
  #orders = 0;
  /** When the alarm that is set rings, perhaps for a timer that was cleared; -Infinity: it has rung. */
  #alarmMs = Number.POSITIVE_INFINITY;

  /** @param setAlarm moves the one alarm; when it rings, `fireOne` is to be called */
  constructor(setAlarm: (atMs: number) => void) {
    this.#setAlarm = setAlarm;
  }

  get size(): number {
    return this.#heap.length;
  }

  add(atMs: number, fire: () => void): PlaneTimer {
    const timer = new Timer(atMs, fire, this.#orders++, this);
    this.#heap.push(timer);
    this.#rise(timer, this.#heap.length - 1);
    this.#arm();
    return timer;
  }

  /** @internal For the timers themselves. */
  remove(timer: Timer): void {
    const { place } = timer;
    if (place < 0) return;
    timer.place = -1;
    const last = this.#heap.pop() as Timer;
    if (last === timer) return;
    this.#rise(last, place);
    this.#sink(last, last.place);
  }

  /**
   * To be called when the alarm has rung, and again while it answers that another timer is due, also after one that threw. Only then the
   * alarm is set again.
   */
  fireOne(nowMs: number): boolean {
    this.#alarmMs = Number.NEGATIVE_INFINITY;
    const first = this.#heap[0];
    if (first !== undefined && first.atMs <= nowMs) {
      this.remove(first);
      first.fire();
    }
    if (this.#isDue(nowMs)) return true;
    this.#alarmMs = Number.POSITIVE_INFINITY;
    this.#arm();
    return false;
  }

  #isDue(nowMs: number): boolean {
    const first = this.#heap[0];
    return first !== undefined && first.atMs <= nowMs;
  }

  #arm(): void {
    const first = this.#heap[0];
    if (first === undefined || first.atMs >= this.#alarmMs) return;
    this.#alarmMs = first.atMs;
    this.#setAlarm(first.atMs);
  }

  #rise(timer: Timer, from: number): void {
    let at = from;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = this.#heap[parent] as Timer;
      if (!timer.before(above)) break;
      this.#put(above, at);
      at = parent;
    }
    this.#put(timer, at);
  }

  #sink(timer: Timer, from: number): void {
    let at = from;
    for (;;) {
      const left = 2 * at + 1;
      if (left >= this.#heap.length) break;
      const right = this.#heap[left + 1];
      let below = this.#heap[left] as Timer;
      if (right?.before(below)) below = right;
      if (!below.before(timer)) break;
      const next = below.place;
      this.#put(below, at);
      at = next;
    }
    this.#put(timer, at);
  }

  #put(timer: Timer, place: number): void {
    this.#heap[place] = timer;
    timer.place = place;
  }
}
