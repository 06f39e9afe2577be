import fc from "fast-check";
import { verifyModes } from "../../src/transceiver/verification.ts";
import { allRows, allStates } from "./rows.ts";

/** When a fault strikes: at a moment of the busy time (per mille), or when a session takes a row or enters a state for the nth time. */
export type Trigger =
  | { readonly at: number }
  | { readonly enters: string; readonly nth: number }
  | { readonly row: string; readonly nth: number };

const mistakes = ["wrongToken", "wrongCount", "noOffer", "notFetched", "refused"] as const;

/** A request: a context instance prefills, a generation instance fetches. Shares of the lease and of the queue's limit are per mille. */
export interface TransferDecision {
  readonly do: "transfer";
  readonly at: number;
  readonly context: number;
  readonly generation: number;
  /** A router that tried twice: this one asks for the same offer too. */
  readonly again: number | null;
  readonly tokens: number;
  readonly skip: number;
  readonly way: "context first" | "generation first";
  /** Of the prefill after the offer is made; 0: it is made when all is there. */
  readonly steps: number;
  /** Between them, of a lease. */
  readonly pause: number;
  /** How late the offer is fetched, of the queue's limit. */
  readonly late: number;
  readonly mistake: (typeof mistakes)[number] | null;
}

export const faultKinds = [
  "cut",
  "half open",
  "mute",
  "deaf",
  "late frame",
  "duplicate",
  "refuse dial",
  "stall dial",
  "stop",
  "kill",
  "replace",
  "cancel send",
  "cancel receive",
  "drain",
  "hang read",
  "fail read",
  "slow read",
  "slow digest",
  "flip byte",
  "starve owner",
] as const;
/**
 * Only written plans have these: what no sender of ours does, which is to say what is not so, and a reader that keeps a staging slot, which
 * the plane of a sender finds out.
 */
export const rareFaults = [
  "early renewal",
  "early abort",
  "stale epoch",
  "frames of another epoch",
  "keep slot",
] as const;
export type FaultKind = (typeof faultKinds)[number] | (typeof rareFaults)[number];

/** "here": the process whose step was the trigger, "there": the other side of its transfer; a number picks one of all. */
export type Place = "here" | "there" | number;

export interface Strike {
  readonly what: FaultKind;
  readonly where: Place;
  /** How long or how many, per mille of the most. */
  readonly size: number;
}

/** One fault, or two that strike together. */
export interface FaultDecision {
  readonly do: "fault";
  readonly when: Trigger;
  /** How much later, per mille of a lease. */
  readonly after: number;
  readonly strikes: readonly Strike[];
}

export const tricks = [
  "no proof",
  "wrong token",
  "wrong rank",
  "no token, wrong rank",
  "foreign layout",
  "no token, foreign layout",
  "another's frames",
  "another's epoch",
  "old epoch",
] as const;

/** Somebody who may not fetch what it asks for. */
export interface StrangerDecision {
  readonly do: "stranger";
  readonly when: Trigger;
  readonly where: Place;
  readonly trick: (typeof tricks)[number];
}

export type Decision = TransferDecision | FaultDecision | StrangerDecision;

/**
 * A run, as data: the same plan gives the same run. Small delays come from `noise`, a stream for each process and each connection, so that
 * a decision that is left out disturbs the others little.
 */
export interface Plan {
  /** 0: everything takes its typical time. */
  readonly noise: number;
  /** Everything takes 20 times as long. */
  readonly slow: boolean;
  readonly network: number;
  readonly owner: number;
  readonly copy: number;
  readonly leaseMs: number;
  /** In tenths of a lease. */
  readonly transferLimit: number | null;
  readonly queueLimit: number;
  readonly verify: (typeof verifyModes)[number];
  /** good: rates err by up to 2.5 %, as 0.95 allows. bad: by up to 5 %, guest clocks stop, memory of the dead is given away: STRICT. */
  readonly clocks: "good" | "bad";
  readonly strict: boolean;
  /** How far the clocks of contexts and generations are off: per mille of the largest error. */
  readonly rates: readonly [contexts: number, generations: number];
  /** What a TCP connection shows; uid: a unix socket. */
  readonly proof: "uid" | "secret" | "token";
  readonly contexts: number;
  readonly contextRanks: number;
  readonly generations: number;
  readonly generationRanks: number;
  /** A generation instance with another model. */
  readonly foreign: number | null;
  readonly turns: number;
  /** Of several requests each other one is told of its prefill in layers. Not in scenes that were found before there were any. */
  readonly layerwise?: boolean;
  readonly decisions: readonly Decision[];
}

const share = fc.integer({ min: 0, max: 1000 });
/** Mostly 0. */
const seldom = <T>(arbitrary: fc.Arbitrary<T>, none: T, weight: number): fc.Arbitrary<T> =>
  fc.oneof({ weight: 100 - weight, arbitrary: fc.constant(none) }, { weight, arbitrary });

const trigger: fc.Arbitrary<Trigger> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ enters: fc.constantFrom(...allStates), nth: fc.integer({ min: 1, max: 3 }) }) },
  { weight: 3, arbitrary: fc.record({ row: fc.constantFrom(...allRows), nth: fc.integer({ min: 1, max: 2 }) }) },
  { weight: 2, arbitrary: fc.record({ at: share }) },
);

const place: fc.Arbitrary<Place> = fc.oneof(
  { weight: 4, arbitrary: fc.constant("here" as const) },
  { weight: 4, arbitrary: fc.constant("there" as const) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 7 }) },
);

const transfer: fc.Arbitrary<TransferDecision> = fc.record({
  do: fc.constant("transfer" as const),
  at: fc.integer({ min: 0, max: 500 }),
  context: fc.integer({ min: 0, max: 1 }),
  generation: fc.integer({ min: 0, max: 2 }),
  again: seldom<number | null>(fc.integer({ min: 0, max: 2 }), null, 15),
  tokens: fc.integer({ min: 1, max: 30 }),
  skip: seldom(fc.integer({ min: 1, max: 30 }), 0, 20),
  way: fc.constantFrom("context first", "generation first"),
  steps: seldom(fc.integer({ min: 1, max: 5 }), 0, 60),
  pause: share,
  late: seldom(fc.integer({ min: 1, max: 1200 }), 0, 10),
  mistake: seldom<TransferDecision["mistake"]>(fc.constantFrom(...mistakes), null, 12),
});

const after = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: 20 }) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 400 }) },
);

/** Faults that are harmless alone and hard together, where they meet something. */
const scripts: readonly (readonly [when: string, ...strikes: readonly (readonly [FaultKind, Place])[]])[] = [
  // The lease ends while data still flows.
  ["receiver READ", ["mute", "here"], ["slow read", "here"]],
  ["receiver READ", ["mute", "here"], ["slow read", "here"], ["cancel send", "there"]],
  ["receiver READ", ["stop", "here"], ["slow read", "here"]],
  ["receiver READ", ["starve owner", "here"], ["mute", "here"]],
  ["receiver PULL", ["mute", "there"], ["stop", "here"]],
  ["receiver PULL", ["stop", "there"], ["cut", "here"]],
  ["sender GRANT", ["mute", "here"], ["mute", "there"]],
  ["sender GRANT", ["starve owner", "here"], ["mute", "there"]],
  ["sender GRANT --leaseOver", ["mute", "here"]],
  ["sender GRANT --renew", ["mute", "there"], ["starve owner", "here"]],
  // What was written before comes again, or on another connection.
  ["receiver PULL", ["duplicate", "here"]],
  ["receiver PULL", ["late frame", "here"]],
  ["sender GRANT", ["late frame", "here"]],
  ["sender OFFER", ["late frame", "here"]],
  ["sender ENDING", ["late frame", "here"]],
  ["receiver CONNECTING", ["drain", "there"]],
  ["sender WAIT", ["drain", "here"]],
  ["sender GRANT", ["mute", "here"], ["drain", "here"]],
  // The sender wants to end and is not heard.
  ["sender GRANT", ["mute", "here"], ["cancel send", "here"]],
  ["sender GRANT", ["stop", "there"], ["cancel send", "here"]],
  ["sender ENDING", ["cut", "here"]],
  ["receiver FINISH", ["cancel send", "there"]],
  // The sender dies, the connection goes, or both.
  ["receiver READ", ["slow read", "here"], ["kill", "there"]],
  ["receiver READ", ["slow read", "here"], ["stop", "here"], ["kill", "there"]],
  ["receiver READ", ["slow read", "here"], ["cut", "here"]],
  ["receiver READ", ["slow read", "here"], ["late frame", "here"]],
  ["receiver READ", ["slow read", "here"], ["cut", "here"], ["refuse dial", "here"]],
  ["receiver READ", ["fail read", "here"], ["cut", "here"]],
  ["receiver FINISH", ["kill", "there"]],
  ["receiver FINISH", ["cancel receive", "here"]],
  ["receiver ORPHAN", ["cancel receive", "here"]],
  ["receiver READ", ["fail read", "here"], ["slow read", "here"], ["kill", "there"]],
  // While digests are on their way.
  ["receiver VERIFY", ["slow digest", "here"], ["cut", "here"], ["cancel send", "there"]],
  ["receiver VERIFY", ["slow digest", "here"], ["kill", "there"]],
  ["sender GRANT", ["slow digest", "here"], ["kill", "here"]],
  ["sender GRANT", ["slow digest", "here"], ["cut", "here"]],
  ["sender GRANT", ["slow digest", "here"], ["cut", "here"], ["refuse dial", "there"]],
  ["sender GRANT", ["slow digest", "here"], ["mute", "here"]],
  ["sender GRANT", ["slow digest", "here"], ["cancel receive", "there"]],
  ["receiver CONNECTING", ["mute", "here"]],
  // A new process in the place of one that is only stopped.
  ["sender GRANT", ["slow read", "there"], ["replace", "there"]],
  ["receiver READ", ["slow read", "here"], ["replace", "there"]],
  ["receiver READ", ["slow read", "here"], ["cancel receive", "here"]],
];

const scripted: fc.Arbitrary<FaultDecision> = fc
  .record({
    script: fc.constantFrom(...scripts),
    nth: fc.integer({ min: 1, max: 3 }),
    after,
    sizes: fc.array(share, { minLength: 3, maxLength: 3 }),
  })
  .map(({ script: [when, ...strikes], nth, after, sizes }) => ({
    do: "fault",
    when: triggerOf(when, nth),
    after,
    strikes: strikes.map(([what, where], index) => ({ what, where, size: sizes[index] ?? 0 })),
  }));

const triggerOf = (when: string, nth: number): Trigger =>
  when.includes("--") ? { row: when, nth } : { enters: when, nth };

/** Strikes of a plot, with the least and the most of their size. */
type Scene = readonly [when: string, ...strikes: readonly (readonly [FaultKind, Place, number, number])[]];

/** Chains of events in which only the clocks stand between a receiver and blocks that were given back. */
const plots: readonly (readonly Scene[])[] = [
  // Renewals don't arrive, data does, and the word that the lease is over is late.
  [
    ["receiver READ", ["mute", "here", 300, 1000], ["slow read", "here", 0, 1000]],
    ["sender GRANT --leaseOver", ["mute", "here", 100, 600]],
  ],
  [
    ["receiver READ --ready", ["mute", "here", 300, 1000], ["slow read", "here", 500, 1000]],
    ["sender GRANT --leaseOver", ["mute", "here", 100, 600]],
  ],
  // The lease has ended before this side's JavaScript hears of it, and it is asked to renew meanwhile.
  [
    ["sender GRANT --renewed", ["starve owner", "here", 450, 900], ["slow read", "there", 500, 1000]],
    ["sender GRANT --leaseOver", ["mute", "here", 100, 600]],
  ],
  // GRANT is late, what was renewed meanwhile is not heard.
  [
    ["sender GRANT", ["mute", "here", 60, 230], ["mute", "there", 400, 1000], ["slow read", "there", 0, 1000]],
    ["sender GRANT --leaseOver", ["mute", "here", 100, 600]],
  ],
  // A HELLO that is overtaken by the next one.
  [["receiver QUEUED --turn", ["stall dial", "here", 0, 1000]]],
  [["receiver READ", ["stall dial", "here", 0, 1000], ["cut", "here", 0, 600]]],
];

const plotted: fc.Arbitrary<FaultDecision[]> = fc
  .record({
    plot: fc.constantFrom(...plots),
    nth: fc.integer({ min: 1, max: 2 }),
    sizes: fc.array(share, { minLength: 3, maxLength: 3 }),
  })
  .map(({ plot, nth, sizes }) =>
    plot.map(
      ([when, ...strikes], scene): FaultDecision => ({
        do: "fault",
        when: triggerOf(when, scene === 0 ? nth : 1),
        after: 0,
        strikes: strikes.map(([what, where, least, most], index) => ({
          what,
          where,
          size: Math.round(least + ((sizes[index] ?? 0) / 1000) * (most - least)),
        })),
      }),
    ),
  );

const chosen: fc.Arbitrary<FaultDecision> = fc.record({
  do: fc.constant("fault" as const),
  when: trigger,
  after,
  strikes: fc.array(fc.record({ what: fc.constantFrom(...faultKinds), where: place, size: share }), {
    minLength: 1,
    maxLength: 2,
  }),
});

const fault = fc.oneof(scripted, chosen);

/** Strangers that find what they lie about. */
const visits: readonly (readonly [enters: string, trick: StrangerDecision["trick"]])[] = [
  ["sender WAIT", "no token, foreign layout"],
  ["sender OFFER", "wrong token"],
  ["sender GRANT", "another's frames"],
  ["sender GRANT", "wrong rank"],
  ["sender ENDING", "wrong token"],
  ["sender ENDING", "wrong rank"],
  ["sender ENDING", "foreign layout"],
  ["sender END", "old epoch"],
];

const stranger: fc.Arbitrary<StrangerDecision> = fc.oneof(
  fc.record({
    do: fc.constant("stranger" as const),
    when: trigger,
    where: place,
    trick: fc.constantFrom(...tricks),
  }),
  fc.constantFrom(...visits).map(([enters, trick]) => ({
    do: "stranger" as const,
    when: { enters, nth: 1 },
    where: "here" as const,
    trick,
  })),
);

const several = <T>(arbitrary: fc.Arbitrary<T>, minLength: number, maxLength: number): fc.Arbitrary<T[]> =>
  fc.array(arbitrary, { minLength, maxLength, size: "max" });

export const plans: fc.Arbitrary<Plan> = fc.noBias(
  fc
    .record({
      noise: fc.integer({ min: 0, max: 0x7fff_ffff }),
      slow: seldom(fc.constant(true), false, 25),
      network: share,
      owner: share,
      copy: share,
      leaseMs: fc.constantFrom(1000, 200),
      transferLimit: seldom<number | null>(fc.integer({ min: 10, max: 60 }), null, 70),
      queueLimit: fc.integer({ min: 20, max: 80 }),
      verify: fc.constantFrom(...verifyModes),
      clocks: fc.constantFrom("good", "good", "good", "good", "bad") as fc.Arbitrary<Plan["clocks"]>,
      strict: seldom(fc.constant(true), false, 10),
      // Mostly a fast sender and a slow receiver: what the share of the lease is there for.
      rates: fc.constantFrom(
        [0, 0],
        [1000, -1000],
        [1000, -1000],
        [1000, -1000],
        [-1000, 1000],
        [500, -500],
      ) as fc.Arbitrary<Plan["rates"]>,
      proof: fc.constantFrom("uid", "secret", "token") as fc.Arbitrary<Plan["proof"]>,
      contexts: fc.integer({ min: 1, max: 2 }),
      contextRanks: seldom(fc.constant(2), 1, 20),
      generations: fc.integer({ min: 1, max: 3 }),
      generationRanks: seldom(fc.constant(2), 1, 20),
      foreign: seldom<number | null>(fc.integer({ min: 0, max: 2 }), null, 4),
      turns: fc.integer({ min: 1, max: 3 }),
      transfers: several(transfer, 1, 8),
      faults: several(fault, 0, 10),
      plotted: seldom<FaultDecision[]>(plotted, [], 50),
      strangers: several(stranger, 0, 3),
    })
    .map(
      ({ transfers, faults, plotted, strangers, ...world }): Plan => ({
        ...world,
        layerwise: true,
        decisions: [...transfers, ...faults, ...plotted, ...strangers],
      }),
    ),
);

/** The plan of a seed. */
export function planOf(seed: number): Plan {
  const [plan] = fc.sample(plans, { seed, numRuns: 1 });
  if (plan === undefined) throw new Error(`seed ${seed} gives no plan`);
  return plan;
}
