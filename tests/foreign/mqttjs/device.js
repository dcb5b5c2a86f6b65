// A device of the portal, written with MQTT.js: sends at every QoS, hears of a refusal, takes one command and answers it.
// node device.js <url> <uid> <token> <version 4 or 5> [<file of the broker's CA>]; prints one JSON object per line.
"use strict";

const fs = require("node:fs");
const mqtt = require("mqtt");

const [url, uid, token, version, ca] = process.argv.slice(2);
const say = (event, content) => console.log(JSON.stringify({ event, ...content }));
const up = (name) => `iiot/${uid}/up/${name}`;

const client = mqtt.connect(url, {
  clientId: uid,
  username: uid,
  password: token,
  protocolVersion: Number(version),
  clean: true,
  reconnectPeriod: 0,
  ca: ca ? [fs.readFileSync(ca)] : undefined,
  will: { topic: up("status"), payload: "offline", qos: 1, retain: true },
});

client.on("error", (error) => {
  say("error", { text: error.message, code: error.code });
  process.exitCode = 1;
});
client.on("close", () => say("close", {}));

client.on("connect", async () => {
  say("connect", {});
  const [granted] = await client.subscribeAsync(`iiot/${uid}/down/#`, { qos: 1 });
  say("subscribe", { qos: granted.qos });
  await client.publishAsync(up("status"), "online", { qos: 1, retain: true });
  for (const qos of [0, 1, 2]) await client.publishAsync(up("telemetry"), JSON.stringify({ [`q${qos}`]: qos }), { qos });
  await client.publishAsync(up("telemetry"), "{", { qos: 1 });
  say("sent", {});
});

client.on("message", async (topic, payload, packet) => {
  const content = JSON.parse(payload.toString());
  const properties = packet.properties ?? {};
  say("message", {
    topic,
    content,
    response: properties.responseTopic,
    correlation: properties.correlationData?.toString(),
    expiry: properties.messageExpiryInterval,
  });
  if (topic.endsWith("/down/command")) {
    const answer = JSON.stringify({ status: "done", result: "by MQTT.js" });
    await client.publishAsync(properties.responseTopic ?? up(`result/${content.id}`), answer, { qos: 1 });
    await client.endAsync();
  }
});
