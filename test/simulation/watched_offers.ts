import { Offers, type OffersOptions } from "../../src/transceiver/offers.ts";
import type { SenderDuties } from "./sender_duties.ts";

/** The real offers of a sender; what is asked of them and what they answer is compared with what a sender owes. */
export class WatchedOffers extends Offers {
  readonly #duties: SenderDuties;

  constructor(options: OffersOptions, duties: SenderDuties) {
    super(options);
    this.#duties = duties;
    const { waiting } = this;
    const refuse = waiting.refuse.bind(waiting);
    waiting.refuse = (requestId) => duties.whileRefusing(requestId, () => refuse(requestId));
    const arrival = waiting.arrival.bind(waiting);
    waiting.arrival = (requestId, signal) => duties.awaited(() => arrival(requestId, signal));
  }

  override add(...[offered]: Parameters<Offers["add"]>): ReturnType<Offers["add"]> {
    return this.#duties.whileOffering(offered.requestId, () => super.add(offered));
  }

  override pull(...[receiver, frame, side]: Parameters<Offers["pull"]>): void {
    this.#duties.whilePulled(receiver, frame, side, () => super.pull(receiver, frame, side));
  }

  override renew(...[receiver, frame]: Parameters<Offers["renew"]>): void {
    this.#duties.whileRenewed(receiver, frame, () => super.renew(receiver, frame));
  }

  override done(...[receiver, frame]: Parameters<Offers["done"]>): void {
    this.#duties.whileDone(receiver, frame, () => super.done(receiver, frame));
  }

  override hello(...[receiver, live]: Parameters<Offers["hello"]>): void {
    this.#duties.whileGreeted(receiver, live, () => super.hello(receiver, live));
  }

  override cancelAll(why: string): void {
    this.#duties.whileDraining(() => super.cancelAll(why));
  }
}
