// docs/errors.md, as text, from the table of src/errors.ts.

const MEANING = {
  call: "this call only; the object it was made on is unharmed",
  transfer: "one transfer; both sides release its blocks exactly once",
  peer: "the link to one peer; other peers and local work go on",
  instance: "this worker or router takes no new work",
  process: "nothing in this process can go on with it",
};

/** For a table's cell: `{name}` places as code, so that they read as places and not as text. */
const cell = (text) =>
  text
    .replaceAll("|", "\\|")
    .replaceAll("\n", " ")
    .replaceAll(/`[^`]*`|\{(\w+)\}/g, (found, place) => (place === undefined ? found : `\`{${place}}\``));

/** @param {Record<string, { scope: string, status: number, message: string, remedy: string }>} errors */
export function errorsPage(errors) {
  const rows = Object.entries(errors)
    .sort(([left], [right]) => (left < right ? -1 : 1))
    .map(
      ([code, { scope, status, message, remedy }]) =>
        `| <a id="${code.toLowerCase()}"></a>\`${code}\` | ${scope} | ${status} | ${cell(message)} | ${cell(remedy)} |`,
    );
  const scopes = Object.entries(MEANING).map(([scope, meaning]) => `- **${scope}**: ${meaning}`);
  return `<!-- Written by \`npm run docs\` from src/errors.ts; a test fails when the two differ. -->
# Errors

Every error of this package is a \`KvError\`. Match on \`code\`: codes are stable and never reused, the text may change. \`details\` holds
what stands in the places of the message, \`remedy\` says what to do, and \`status\` is the HTTP status when the error reaches a client of a
worker or router, whose body carries the code in lower case.

\`scope\` says what is broken, and so what a caller may replace or retry:

${scopes.join("\n")}

| code | scope | status | message | remedy |
| --- | --- | --- | --- | --- |
${rows.join("\n")}
`;
}
