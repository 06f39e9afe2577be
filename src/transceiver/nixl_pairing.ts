import { loadNative } from "../native/loader.ts";

/** What the two sides of a connection tell each other of their NIXL, where they have one. */
export interface OwnNixl {
  readonly plugin: string;
  /** "1.5.1"; empty: not known. */
  readonly version: string;
  /** There is no other path on that side. */
  readonly alone: boolean;
}

export interface NixlPair {
  readonly receiver: OwnNixl | undefined;
  readonly sender: OwnNixl | undefined;
}

/** Why agents of the two can't work together (spec nixl.md section 6.1), or null: they can, or one side has none. */
export function nixlRefusal({ receiver, sender }: NixlPair): string | null {
  if (receiver === undefined || sender === undefined) return null;
  const pair = receiver.plugin === sender.plugin && loadNative().nixlVersionsPair(receiver.version, sender.version);
  if (pair) return null;
  const both = `${nameOf(receiver)} of the receiver and ${nameOf(sender)} of the sender`;
  return `${both} are not known to work together; 1.4 and 1.5 do, and 0.10 to 1.3, with one plug-in on both sides`;
}

/** The same, where the two have no other path in common: they need not try. */
export const onlyNixlRefusal = (pair: NixlPair): string | null =>
  pair.receiver?.alone || pair.sender?.alone ? nixlRefusal(pair) : null;

const nameOf = ({ plugin, version }: OwnNixl): string => `NIXL ${version || "of an unknown version"} (${plugin})`;
