"""OPC UA: 5,000 monitored items that change once a second; how old a value is when the client has it.

The limit, in the same run: a bare asyncua server with 5,000 variables that are written each second, watched by the same client.
"""

import asyncio
import contextlib
import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncua import Client, Server, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from bench import servers
from iiot import auth, config, tenancy
from iiot.embedded import ports
from iiot.ids import new_uid
from iiot.models import Membership, User
from iiot.services import devices, ingest
from protocols.opcua_certificates import Keyring

DEVICES, SIGNALS = 500, 10
GOAL_SECONDS = 1.0
PASSWORD = "seven purple lanterns at sea"
INTERVAL_MS = 250
