import { describe, expect, it } from "vitest";
import { parseExact } from "../../../src/openai/exact_integers.ts";

describe("an exact reading of JSON", () => {
  it("makes bigint of integers that a number can't carry, wherever they stand, and of nothing else", () => {
    const big = 2n ** 62n + 1n;
    expect(parseExact(`${big}`)).toBe(big);
    expect(parseExact(` [ ${big} ,\n-${big},{"a":${big}}]`)).toEqual([big, -big, { a: big }]);
    expect(parseExact("[9007199254740991, 9007199254740993]")).toEqual([9007199254740991, 9007199254740993n]);
    expect(parseExact("18446744073709551615")).toBe(2n ** 64n - 1n);
  });

  it.each([
    "0.12345678901234567890",
    "12345678901234567890.5",
    "1234567890123456789e2",
    "1e-12345678901234567890",
    "1E+12345678901234567890",
    "-0.00012345678901234567",
    "123456789012345678901",
    "-12345678901234567890",
    `"${"9".repeat(18)}"`,
    `"\\"${"9".repeat(18)}"`,
    `{"9999999999999999999":"\\\\","b":"[9999999999999999999,"}`,
  ])("reads %s as JSON.parse does", (text) => {
    expect(parseExact(text)).toEqual(JSON.parse(text));
  });
});
