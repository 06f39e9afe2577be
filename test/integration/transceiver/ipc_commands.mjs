/** Answers the calls of a Peer (peer_process.ts) by the functions of these names. */
export function serveCommands(commands) {
  process.on("message", async ({ call, name, argument }) => {
    try {
      process.send({ call, value: (await commands[name](argument ?? {})) ?? null });
    } catch (error) {
      process.send({ call, error: error.code === undefined ? error.stack : `${error.code}: ${error.message}` });
    }
  });
  process.on("unhandledRejection", (error) => {
    console.error("UNHANDLED", error);
    process.exit(70);
  });
  process.send({ started: true });
}
