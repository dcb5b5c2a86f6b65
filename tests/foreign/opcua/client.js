"use strict";
// node-opcua against the portal: `node client.js '<JSON>'`, prints one JSON object as its last line. What is asked for is in `ask` below.
const {
    AttributeIds, ClientMonitoredItem, ClientSubscription, DataType, MessageSecurityMode, OPCUAClient,
    SecurityPolicy, TimestampsToReturn, UserTokenType,
} = require("node-opcua-client");
const { OPCUACertificateManager } = require("node-opcua-certificate-manager");

async function main(ask) {
    const manager = new OPCUACertificateManager({ rootFolder: ask.folder, automaticallyAcceptUnknownCertificate: true });
    await manager.initialize();
    const client = OPCUAClient.create({
        applicationName: "node-opcua test",
        clientCertificateManager: manager,
        connectionStrategy: { maxRetry: 1, initialDelay: 100 },
        endpointMustExist: false,
        requestedSessionTimeout: 60000,
        securityMode: MessageSecurityMode[ask.mode || "SignAndEncrypt"],
        securityPolicy: SecurityPolicy[ask.policy || "Basic256Sha256"],
    });
    const told = {};
    try {
        await client.connect(ask.url);
        const identity = ask.user
            ? { type: UserTokenType.UserName, userName: ask.user, password: ask.password }
            : { type: UserTokenType.Anonymous };
        const session = await client.createSession(identity);
        try {
            await work(session, ask, told);
        } finally {
            await session.close();
        }
    } catch (error) {
        told.error = String(error.message || error);
    } finally {
        await client.disconnect();
    }
    return told;
}

async function work(session, ask, told) {
    const objects = await session.browse("ObjectsFolder");
    told.objects = objects.references.map((each) => each.browseName.toString());
    const devices = await session.browse("ns=2;s=Devices");
    told.devices = devices.references.map((each) => [each.nodeId.toString(), each.browseName.name]);
    if (!ask.device) {
        return;
    }
    const signal = `ns=2;s=${ask.device}/temperature`;
    const children = await session.browse(`ns=2;s=${ask.device}`);
    told.children = children.references.map((each) => each.browseName.name);
    const value = await session.read({ nodeId: signal, attributeId: AttributeIds.Value });
    told.read = [value.value.value, value.statusCode.name, DataType[value.value.dataType], value.sourceTimestamp.getTime()];
    const range = await session.read({ nodeId: `${signal}#EURange`, attributeId: AttributeIds.Value });
    told.range = [range.value.value.low, range.value.value.high];
    const unit = await session.read({ nodeId: `${signal}#EngineeringUnits`, attributeId: AttributeIds.Value });
    told.unit = [unit.value.value.unitId, unit.value.value.displayName.text];
    const unknown = await session.read({ nodeId: `ns=2;s=${ask.foreign}/temperature`, attributeId: AttributeIds.Value });
    told.foreign = unknown.statusCode.name;
    told.write = await write(session, `ns=2;s=${ask.device}/setpoint`, 42.5);
    told.denied = await write(session, signal, 1);
    const called = await session.call({
        inputArguments: [{ dataType: DataType.String, value: "offline" }],
        methodId: `ns=2;s=${ask.device}#SetStatus`,
        objectId: `ns=2;s=${ask.device}`,
    });
    told.call = [called.statusCode.name, called.outputArguments[0].value];
    const from = new Date(ask.from), to = new Date(ask.to);
    const history = await session.readHistoryValue({ nodeId: signal }, from, to);
    told.history = history.historyData.dataValues.map((each) => each.value.value);
    told.heard = await listen(session, signal);
}

async function write(session, nodeId, number) {
    const value = { value: { dataType: DataType.Double, value: number } };
    return (await session.write({ attributeId: AttributeIds.Value, nodeId, value })).name;
}

// Says that it listens, and waits until the value 77 has come.
async function listen(session, nodeId) {
    const subscription = ClientSubscription.create(session, { publishingEnabled: true, requestedPublishingInterval: 100 });
    const item = ClientMonitoredItem.create(
        subscription, { attributeId: AttributeIds.Value, nodeId }, { queueSize: 10, samplingInterval: 0 }, TimestampsToReturn.Both,
    );
    const heard = [];
    await new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error("nothing was pushed: " + heard)), 30000).unref();
        item.on("changed", (value) => {
            if (heard.length === 0) {
                process.stderr.write("listening\n");
            }
            heard.push(value.value.value);
            if (value.value.value === 77) {
                resolve();
            }
        });
    });
    await subscription.terminate();
    return heard;
}

main(JSON.parse(process.argv[2])).then(
    (told) => {
        process.stdout.write("\n" + JSON.stringify(told) + "\n", () => process.exit(0));
    },
    (error) => {
        process.stderr.write(String(error.stack));
        process.exit(1);
    },
);
