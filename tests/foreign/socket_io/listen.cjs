// node listen.cjs URL TOKEN DEVICE: connects, subscribes to one device, and prints one JSON line per thing that happens.
const { io } = require("socket.io-client");

const [url, token, device] = process.argv.slice(2);
const say = (what, data) => process.stdout.write(`${JSON.stringify({ what, data })}\n`);
const socket = io(url, { transports: ["websocket"], auth: { token }, reconnectionDelay: 100, reconnectionDelayMax: 200 });

socket.on("connect", () => {
  socket.emit("subscribe", { devices: [device] }, (answer) => say("subscribed", answer));
});
socket.on("connect_error", (error) => {
  say("refused", error.message);
  if (!socket.active) process.exit(0);
});
socket.on("disconnect", (reason) => say("disconnect", reason));
for (const event of ["telemetry", "device", "command"]) socket.on(event, (data) => say(event, data));
process.stdin.on("end", () => socket.close()).resume();
