// One socket per page. Elements ask to watch a device or the tenant; a reconnect subscribes again and asks for what was missed.
import { io } from "../vendor/socket.io.js";

const EVENTS = ["telemetry", "device", "alarm", "command", "score", "cursor"];
const bus = new EventTarget();
const watched = new Map(); // key: device uid, or "tenant" → number of watchers
let socket = null;
let cursor = null;
let refused = 0;
let state = "connecting";

function setState(next) {
  state = next;
  bus.dispatchEvent(new CustomEvent("state", { detail: next }));
}

const request = (key) => (key === "tenant" ? { tenant: true } : { devices: [key] });

async function ask(event, payload) {
  try {
    return await socket.timeout(10000).emitWithAck(event, payload);
  } catch {
    return { ok: false, error: "no answer" };
  }
}

async function subscribe(key) {
  const answer = await ask("subscribe", request(key));
  if (!answer?.ok) console.warn(`The live channel refused ${key}: ${answer?.error}`);
}

async function onConnect() {
  refused = 0;
  // Noted before subscribing: live events bring newer cursors, and what lies between would be skipped.
  const since = cursor;
  await Promise.all([...watched.keys()].map(subscribe));
  if (since) {
    const answer = await ask("resume", { cursor: since });
    // Too old to resume: elements that draw history load it again.
    if (!answer?.ok) bus.dispatchEvent(new Event("gap"));
  }
  setState("live");
}

function connect() {
  socket = io({ path: "/socket.io", transports: ["websocket"], reconnectionDelayMax: 15000 });
  socket.on("connect", onConnect);
  socket.on("disconnect", (reason) => {
    setState("connecting");
    if (reason === "io server disconnect") retry();
  });
  socket.on("connect_error", () => {
    setState("down");
    if (!socket.active) retry();
  });
  for (const name of EVENTS) {
    socket.on(name, (message) => {
      if (message.cursor) cursor = message.cursor;
      bus.dispatchEvent(new CustomEvent(name, { detail: message }));
    });
  }
}

// The server itself said no, so the library does not try again by itself.
async function retry() {
  refused += 1;
  await new Promise((done) => setTimeout(done, Math.min(15000, 500 * 2 ** refused)));
  socket.connect();
}

function start() {
  if (!socket) connect();
}

/** Call `fn(message)` for every `event`; returns the function that ends it. */
export function on(event, fn) {
  start();
  const listener = (each) => fn(each.detail);
  bus.addEventListener(event, listener);
  return () => bus.removeEventListener(event, listener);
}

/** Ask for the events of a device uid, or of `"tenant"`; returns the function that ends it. */
export function watch(key) {
  start();
  watched.set(key, (watched.get(key) ?? 0) + 1);
  if (watched.get(key) === 1 && socket.connected) subscribe(key);
  return () => {
    watched.set(key, watched.get(key) - 1);
    if (watched.get(key)) return;
    watched.delete(key);
    if (socket.connected) ask("unsubscribe", request(key));
  };
}

/** "connecting", "live" or "down". */
export const currentState = () => state;
