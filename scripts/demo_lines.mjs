// What the output of `npm start` must say, line by line, for the demo to have shown what it claims.

const ended = "All 7 processes have ended.";

/**
 * @param {string} text everything that it printed
 * @returns {{ what: string, holds: boolean }[]} one for each claim
 */
export function demoClaims(text) {
  const key = /\.\.\. .*?(\d{5}).* \.\.\./.exec(text)?.[1];
  const answer = /^Answer +(.*)$/m.exec(text)?.[1] ?? "";
  const empty = /with an empty cache in place of the moved one it would be: (.*)/.exec(text)?.[1];
  const line = (what, pattern) => ({ what, holds: pattern.test(text) });
  return [
    line("four processes start", /4 processes ready in [\d.]+ s/),
    { what: "the answer names the key that stands in the prompt", holds: key !== undefined && answer.includes(key) },
    line("prefill has a time and a worker", /prefill +[\d.]+ ms .* tokens by context [12] \(pid \d+\)/),
    line(
      "the transfer has blocks, bytes, a rate and a path",
      /transfer +[\d.]+ ms .* \d+ blocks, [\d.]+ MB moved in [\d,]+ µs: [\d.]+ GB\/s over \w+/,
    ),
    line("decode has a time and a worker", /decode +[\d.]+ ms .* \d+ tokens by generation \(pid \d+\)/),
    line(
      "one worker alone gives the same answer, to the last bit",
      /✓ .* gives the same answer: [1-9]\d* tokens and their probabilities, equal to the last bit/,
    ),
    {
      what: "an empty cache gives another answer",
      holds: empty !== undefined && key !== undefined && !empty.includes(key),
    },
    { what: "all processes have ended", holds: text.includes(ended) },
  ];
}
