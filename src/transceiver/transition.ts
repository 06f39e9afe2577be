import { KvError } from "../errors.ts";

/** What a machine does on one event: the state it goes to and what is carried out, in this order. */
export interface Cell<State extends string, Effect extends string> {
  readonly next: State;
  readonly effects: readonly Effect[];
}

/**
 * A session machine as data. A cell without effects is an event that is dropped there on purpose; a missing cell is impossible and
 * asserts. Names of events say what was decided about a frame or a completion before the lookup, so that a cell needs no condition.
 */
export type TransitionTable<State extends string, Event extends string, Effect extends string> = Readonly<
  Record<State, Readonly<Partial<Record<Event, Cell<State, Effect>>>>>
>;

/** @throws KvError INTERNAL when the event can't happen in this state */
export function cellOf<State extends string, Event extends string, Effect extends string>(
  machine: string,
  table: TransitionTable<State, Event, Effect>,
  state: State,
  event: Event,
): Cell<State, Effect> {
  const cell = table[state][event];
  if (cell === undefined) throw new KvError("INTERNAL", { where: `${machine} session`, why: `${event} in ${state}` });
  return cell;
}
