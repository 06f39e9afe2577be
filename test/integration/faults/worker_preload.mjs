// node --import worker_preload.mjs bin/kvt.js serve ...: a real worker whose transceivers can be told to stand still in a state, and whose
// control connections can be cut. Driven over IPC by worker_fleet.ts.
import net from "node:net";
import { decodeState } from "../../../dist/transceiver/opaque_state.js";
import { KvTransceiver } from "../../../dist/transceiver/transceiver.js";
import { FaultHooks } from "../transceiver/fault_hooks.mjs";

const hooks = new FaultHooks(({ state }) => {
  process.send({ reached: state, sender: lastSender });
  process.kill(process.pid, "SIGSTOP");
});
/** Epoch of whom the last receive was asked of; one request at a time is hit. */
let lastSender = null;

const { open } = KvTransceiver;
KvTransceiver.open = async (options, given = {}) => {
  const { observer, plane } = hooks;
  const kv = await open.call(KvTransceiver, options, { ...given, observer, plane });
  const receive = kv.receive.bind(kv);
  kv.receive = (wanted) => {
    lastSender = "state" in wanted ? (decodeState(wanted.state).ranks[0]?.epoch ?? null) : null;
    return receive(wanted);
  };
  process.send({ opened: kv.epoch });
  return kv;
};

/** Connections between transceivers go through unix sockets here; HTTP does not. */
const control = new Set();
const track = (socket) => {
  control.add(socket);
  socket.once("close", () => control.delete(socket));
};
const isControl = (path) => typeof path === "string" && path.startsWith(process.env.KVT_SOCKET_DIR);
const { connect } = net.Socket.prototype;
net.Socket.prototype.connect = function (...args) {
  const [options] = Array.isArray(args[0]) ? args[0] : args;
  if (isControl(options?.path ?? options)) track(this);
  return connect.apply(this, args);
};
const { emit } = net.Server.prototype;
net.Server.prototype.emit = function (event, ...args) {
  if (event === "connection" && isControl(this.address())) track(args[0]);
  return emit.call(this, event, ...args);
};

process.on("message", ({ arm, cut }) => {
  if (arm !== undefined) hooks.armed = arm;
  if (cut === true) for (const socket of control) socket.destroy();
  process.send({ done: true });
});
// The channel alone keeps no worker alive.
process.channel.unref();
