import { receiverTable } from "../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../src/transceiver/sender_table.ts";

const tables = [
  ["sender", waitTable],
  ["sender", senderTable],
  ["receiver", receiverTable],
] as const;

export const rowName = (role: string, from: string, event: string): string => `${role} ${from} --${event}`;
export const stateName = (role: string, state: string): string => `${role} ${state}`;

/** Every row that a session can take, WAIT's among them. */
export const allRows: readonly string[] = [
  ...new Set(
    tables.flatMap(([role, table]) =>
      Object.entries(table).flatMap(([from, row]) => Object.keys(row).map((event) => rowName(role, from, event))),
    ),
  ),
];

/** Every state that something can enter. */
export const allStates: readonly string[] = [
  ...new Set(
    tables.flatMap(([role, table]) =>
      Object.keys(table)
        .filter((state) => state !== "NONE" && state !== "QUEUED")
        .map((state) => stateName(role, state)),
    ),
  ),
];
