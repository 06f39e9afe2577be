import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type JsonObject, parseBody, stringifyBody } from "../../../src/openai/index.ts";
import { topLevelValueSpan } from "../../../src/openai/json_scan.ts";

const BIG = 2n ** 62n + 1n;

describe("bodies", () => {
  test("an id above 2^53 survives reading and writing, in a request and in a context reply", () => {
    const request = `{"model":"tiny","disaggregated_params":{"request_type":"generation_only","ctx_request_id":${BIG},"n":[1, -1.5e3]}}`;
    const body = parseBody(Buffer.from(request));
    expect(body.disaggregated_params).toEqual({
      request_type: "generation_only",
      ctx_request_id: BIG,
      n: [1, -1500],
    });
    expect(stringifyBody(body)).toContain(`"ctx_request_id":${BIG}`);
    const reply = parseBody(`{"choices":[{"text":"${BIG}","disaggregated_params":{"ctx_request_id":${BIG}}},{"n":1}]}`);
    expect(stringifyBody(reply)).toBe(
      `{"choices":[{"text":"${BIG}","disaggregated_params":{"ctx_request_id":${BIG}}},{"n":1}]}`,
    );
  });

  test("a 64-bit seed is exact, and other fields stay plain numbers", () => {
    const body = parseBody('{"seed": 9007199254740993, "temperature": 0.5, "other": 9007199254740993}');
    expect(body).toEqual({ seed: 9007199254740993n, temperature: 0.5, other: 9007199254740992 });
  });

  test.each([
    ['{"a": 1', /too early|character 7/],
    ["[1]", /an array/],
    ["null", /null/],
    ['"text"', /a string/],
    ['{"a": nope}', /syntax error/],
    ["", /too early/],
  ])("%s is refused as BAD_JSON with the reason and without quoting the body", (text, why) => {
    expect(() => parseBody(text)).toThrow(expect.objectContaining({ code: "BAD_JSON", status: 400 }));
    expect(() => parseBody(text)).toThrow(why);
  });

  test("bytes that are no UTF-8 are refused", () => {
    expect(() => parseBody(Uint8Array.of(0x7b, 0xff, 0x7d))).toThrow(/UTF-8/);
  });

  test("nesting of 100,000 levels with a big id inside is a clear refusal, not a stack overflow", () => {
    const deep = `${"[".repeat(100_000)}${BIG}${"]".repeat(100_000)}`;
    expect(() => parseBody(`{"disaggregated_params": ${deep}}`)).toThrow(/nested too deeply/);
    const plain = parseBody(`{"tools": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`);
    expect(() => stringifyBody(plain)).toThrow(/nested too deeply/);
  });

  test("a value that claims to be a lossless number is only an object", () => {
    const body = parseBody(`{"disaggregated_params":{"x":{"isLosslessNumber":true,"value":"} evil"},"id":${BIG}}}`);
    expect(parseBody(stringifyBody(body))).toEqual(body);
  });

  test("integers too long for any id stay numbers, at linear cost", () => {
    const body = parseBody(`{"disaggregated_params":{"ctx_request_id":${"9".repeat(200_000)}}}`);
    expect(body.disaggregated_params).toEqual({ ctx_request_id: Number.POSITIVE_INFINITY });
  });

  test("a key __proto__ changes no prototype", () => {
    const body = parseBody(`{"disaggregated_params":{"__proto__":{"polluted":1},"id":${BIG}}}`);
    expect((body.disaggregated_params as JsonObject).polluted).toBeUndefined();
    expect(({} as JsonObject).polluted).toBeUndefined();
  });

  test("a 10 MB body is read before the limit, whatever the prompt is made of", () => {
    const escapes = JSON.stringify('\\" disaggregated_params {[ '.repeat(400_000));
    const ids = `[${"12345,".repeat(1_600_000)}1]`;
    for (const prompt of [escapes, ids]) {
      const text = Buffer.from(`{"prompt":${prompt},"disaggregated_params":{"ctx_request_id":${BIG}}}`);
      const body = parseBody(text);
      expect(body.disaggregated_params).toEqual({ ctx_request_id: BIG });
    }
  });
});

const hostileText = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.constantFrom(
    "disaggregated_params",
    '"disaggregated_params":{',
    '\\"disaggregated_params\\":',
    "}]",
    "{[",
    "\\",
    '"',
    "\\u0022",
    `${BIG}`,
  ),
);
const { json } = fc.letrec<{ json: unknown }>((tie) => ({
  json: fc.oneof(
    { depthSize: "small" },
    hostileText,
    fc.integer(),
    fc.double({ noNaN: true, min: -(2 ** 53) + 1, max: 2 ** 53 - 1 }).map((value) => value + 0),
    fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
    fc.constantFrom(null, true, false),
    fc.array(tie("json"), { maxLength: 4 }),
    fc.dictionary(hostileText, tie("json"), { maxKeys: 4 }),
  ),
}));

/** Writes JSON with random white space and escapes, bigint as bare integers. */
function write(value: unknown, dice: () => number): string {
  const space = (): string => ["", "", "", " ", "\n", "\t\r "][dice() % 6] ?? "";
  const text = (plain: string): string => {
    const escaped = JSON.stringify(plain);
    if (dice() % 3 !== 0) return escaped;
    const units = Array.from({ length: plain.length }, (_, at) => plain.charCodeAt(at));
    return `"${units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("")}"`;
  };
  if (typeof value === "bigint") return String(value);
  if (typeof value === "string") return text(value);
  if (Array.isArray(value)) return `[${value.map((item) => space() + write(item, dice) + space()).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).map(
    ([key, item]) => `${space()}${text(key)}${space()}:${space()}${write(item, dice)}${space()}`,
  );
  return `{${entries.join(",")}}`;
}

/** bigint where a number would not do. */
const exact = (value: unknown): unknown =>
  typeof value === "bigint"
    ? Number.isSafeInteger(Number(value))
      ? Number(value)
      : value
    : Array.isArray(value)
      ? value.map(exact)
      : typeof value === "object" && value !== null
        ? Object.fromEntries(Object.entries(value).map(([key, item]) => [key, exact(item)]))
        : value;

test("whatever stands around it, disaggregated_params is read exactly and the rest as JSON.parse reads it", () => {
  const object = fc.dictionary(hostileText, json, { maxKeys: 5 });
  fc.assert(
    fc.property(object, object, object, fc.array(fc.nat(), { minLength: 1 }), (before, params, after, dice) => {
      let next = 0;
      const roll = (): number => dice[next++ % dice.length] ?? 0;
      const body: JsonObject = { ...before, disaggregated_params: params, ...after, disaggregated_params2: params };
      const text = write(body, roll);
      const parsed = parseBody(text);
      expect(parsed).toEqual({
        ...(JSON.parse(text) as JsonObject),
        disaggregated_params: exact(body.disaggregated_params),
      });
      expect(parseBody(stringifyBody(parsed))).toEqual(parsed);
    }),
    { numRuns: 500 },
  );
});

test("the scanner finds the text of every key that JSON.parse sees, the last of repeated ones", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(hostileText, json), { maxLength: 6 }),
      fc.array(fc.nat(), { minLength: 1 }),
      (entries, dice) => {
        let next = 0;
        const roll = (): number => dice[next++ % dice.length] ?? 0;
        const text = ` {${entries.map(([key, value]) => `${write(key, roll)} : ${write(value, roll)} `).join(",")}} `;
        const parsed = JSON.parse(text) as JsonObject;
        for (const key of Object.keys(parsed)) {
          const span = topLevelValueSpan(text, key);
          expect(span).toBeDefined();
          expect(JSON.parse(text.slice(span?.start, span?.end))).toEqual(parsed[key]);
        }
        expect(topLevelValueSpan(text, "no such key \u{1F511}")).toBeUndefined();
      },
    ),
    { numRuns: 500 },
  );
});
