import { expect, it } from "vitest";
import { staleImages } from "../../../scripts/kernels.mjs";

it("the kernels' machine code was built from the sources that lie beside it", () => {
  expect(staleImages()).toEqual([]);
});
