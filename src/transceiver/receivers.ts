import type { Epoch } from "../ids.ts";
import type { Frame } from "./protocol.ts";

/** Receiver epochs whose connection numbers are remembered after they left. */
const REMEMBERED = 4096;

interface Connection {
  readonly number: number;
  send(frame: Frame): boolean;
  close(why: string): void;
}

/** Which connection leads to which receiver epoch now: the newest, whose number is the highest (lease-model.md section 1). */
export class Receivers {
  readonly #current = new Map<Epoch, Connection>();
  readonly #numbers = new Map<Epoch, number>();

  /** False: a newer connection of this receiver was here already. The older one is dropped. */
  welcome(receiver: Epoch, connection: Connection): boolean {
    if (connection.number <= (this.#numbers.get(receiver) ?? 0)) return false;
    // Newest last, so that the first is the one to forget.
    this.#numbers.delete(receiver);
    this.#numbers.set(receiver, connection.number);
    const older = this.#current.get(receiver);
    this.#current.set(receiver, connection);
    older?.close("a newer connection of this receiver");
    for (const oldest of this.#numbers.keys()) {
      if (this.#numbers.size <= REMEMBERED) break;
      if (!this.#current.has(oldest)) this.#numbers.delete(oldest);
      else break;
    }
    return true;
  }

  gone(receiver: Epoch, connection: Connection): void {
    if (this.#current.get(receiver) === connection) this.#current.delete(receiver);
  }

  /** False: no connection leads there, the frame is lost. */
  write(receiver: Epoch, frame: Frame): boolean {
    return this.#current.get(receiver)?.send(frame) ?? false;
  }
}
