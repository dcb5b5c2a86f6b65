"""What aiocoap can do at best: a resource that answers 2.04 to every POST /telemetry and stores nothing. The limit of the CoAP bench.

python -m bench.coap_bare <port>
"""

import asyncio
import sys

import aiocoap
from aiocoap import resource


class Telemetry(resource.Resource):  # type: ignore[misc]
    """2.04, always."""

    async def render_post(self, request: aiocoap.Message) -> aiocoap.Message:
        """Called by aiocoap."""
        return aiocoap.Message(code=aiocoap.CHANGED)


async def main(port: int) -> None:
    """Serve until the process is ended."""
    site = resource.Site()
    site.add_resource(["telemetry"], Telemetry())
    await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", port), transports=["simplesocketserver"])
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
