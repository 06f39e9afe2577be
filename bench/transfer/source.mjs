// The process whose pool is read: opens a data plane for each layout it is told, fills it, answers its descriptor.
import { fill, openPlane } from "../../test/integration/dataplane/plane.mjs";

let opened;
process.on("message", async ({ layout, blocks, socketDir }) => {
  await opened?.plane.close();
  opened = await openPlane({ layout, blocks, socketDir });
  opened.plane.ref();
  fill(opened.plane.memory, 1);
  process.send(opened.plane.descriptor);
});
process.on("disconnect", () => process.exit(0));
