"""What the OPC UA server counts."""

from prometheus_client import Counter, Gauge

sessions = Gauge("iiot_opcua_sessions", "Sessions that are open.", multiprocess_mode="livesum")
connections = Gauge(
    "iiot_opcua_connections", "TCP connections, with and without a session.", multiprocess_mode="livesum"
)
items = Gauge("iiot_opcua_monitored_items", "Monitored items of all sessions.", multiprocess_mode="livesum")
requests_total = Counter("iiot_opcua_requests_total", "Requests of clients, by service.", ["service"])
refused_total = Counter(
    "iiot_opcua_refused_total",
    "Clients that were refused: login, limited, certificate, security, sessions, malformed.",
    ["reason"],
)
