"""Protocol adapters: each brings messages of devices in, and answers out, over one protocol."""

from iiot import lean

# It would take a DNS library along (dnspython, 4 MB) for SRV records, which no adapter looks up.
lean.load("paho.mqtt.client", "dns")
