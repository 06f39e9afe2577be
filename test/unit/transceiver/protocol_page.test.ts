import { readFileSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { frameFields } from "../../../src/transceiver/protocol.ts";
import { receiverTable } from "../../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../../src/transceiver/sender_table.ts";
import type { TransitionTable } from "../../../src/transceiver/transition.ts";

const page = new URL("../../../docs/protocol.md", import.meta.url);
const START =
  "<!-- printed from src/transceiver; KVT_REWRITE=1 npx vitest run test/unit/transceiver/protocol_page rewrites it -->";

function machine(title: string, table: TransitionTable<string, string, string>): string[] {
  const rows = Object.entries(table).flatMap(([state, cells]) =>
    Object.entries(cells).map(([event, cell]) =>
      cell === undefined
        ? ""
        : `| ${state} | ${event} | ${cell.next === state ? "same" : cell.next} | ${cell.effects.join(", ")} |`,
    ),
  );
  return [`## ${title}`, "", "| state | event | next | effects |", "|---|---|---|---|", ...rows, ""];
}

function printed(): string {
  const frames = Object.entries(frameFields).map(([type, schema]) => {
    const names = Object.keys(schema.shape).map((name) => `\`${name}\``);
    return `| ${type} | ${names.join(", ")} |`;
  });
  return [
    START,
    "",
    "## Fields of the frames",
    "",
    "| frame | fields |",
    "|---|---|",
    ...frames,
    "",
    ...machine("The sender's session", senderTable),
    ...machine("A pull that waits for its offer", waitTable),
    ...machine("The receiver's session", receiverTable),
  ].join("\n");
}

it("docs/protocol.md prints the frames and tables as they are", () => {
  const text = readFileSync(page, "utf8");
  const head = text.slice(0, text.indexOf(START));
  const now = `${head}${printed()}`;
  if (process.env.KVT_REWRITE === "1") writeFileSync(page, now);
  else expect(text).toBe(now);
});
