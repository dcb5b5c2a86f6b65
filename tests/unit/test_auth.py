"""Principals, permissions, hashing: no servers."""

import itertools
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiot import auth, config
from iiot.errors import Forbidden, Invalid, Unauthorized, Unavailable
from tests.services import ROOT, active


@pytest.fixture(scope="module", autouse=True)
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A secret key for what is derived from it."""
    auth._key.cache_clear()
    with active(config.read(_env_file=None, secret_key="k" * 40, data_dir=tmp_path_factory.mktemp("data"))):
        yield
    auth._key.cache_clear()


def test_a_hash_fits_its_password_alone() -> None:
    stored = auth.hash_password("correct horse")
    assert stored.startswith("v2$$2b$12$")
    assert auth.verify_password("correct horse", stored)
    assert not auth.verify_password("correct hors", stored)
    assert not auth.verify_password("correct horse", None)
    assert not auth.verify_password("correct horse", stored.removeprefix("v2$"))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_different_passwords_never_meet_before_bcrypt(one: str, other: str) -> None:
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (auth._peppered(one) == auth._peppered(other)) == same
    assert len(auth._peppered(one)) == 64


def test_too_long_a_password_is_refused_before_any_work() -> None:
    started = time.perf_counter()
    with pytest.raises(Invalid):
        auth.hash_password("x" * 1025)
    assert time.perf_counter() - started < 0.1


def test_when_the_queue_of_the_pool_is_full_the_next_one_is_told_to_come_again() -> None:
    import threading

    pool, gate = auth._HashPool(1), threading.Event()
    waiting = [threading.Thread(target=pool.run, args=(gate.wait, 10)) for _ in range(5)]
    for thread in waiting:
        thread.start()
    from tests.services import eventually

    eventually(lambda: pool._slots._value == 0)
    with pytest.raises(Unavailable) as refused:
        pool.run(gate.wait, 10)
    assert refused.value.headers["Retry-After"] == "3"
    gate.set()
    for thread in waiting:
        thread.join()
    assert pool.run(lambda: 5) == 5


def test_under_gevent_hashing_does_not_stop_the_loop() -> None:
    program = """
from gevent import monkey; monkey.patch_all()
import gevent, time
from iiot import auth
longest, done = 0.0, False
def watch():
    global longest
    while not done:
        before = time.perf_counter(); gevent.sleep(0.005); longest = max(longest, time.perf_counter() - before)
watcher = gevent.spawn(watch); gevent.sleep(0)
jobs = [gevent.spawn(auth.hash_password, "correct horse") for _ in range(2)]
started = time.perf_counter(); gevent.joinall(jobs, raise_error=True); taken = time.perf_counter() - started
done = True
assert longest < taken / 2, (longest, taken)
"""
    environment = {"PATH": "/usr/bin:/bin", "IIOT_SECRET_KEY": "k" * 40, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "password1234",
        "PASSWORD1234",
        "aaaaaaaaaaaaaaa",
        "abababababab",
        "anna.berger12",
        "annaberger2024",
        "anna.berger@example.org",
        "x" * 1025,
    ],
)
def test_poor_passwords_are_refused_with_a_text(password: str) -> None:
    with pytest.raises(Invalid) as refused:
        auth.check_password_policy(password, email="anna.berger@example.org", name="Anna Berger")
    assert refused.value.errors
    assert refused.value.errors[0]["loc"] == ["body", "password"]


@pytest.mark.parametrize(
    "password",
    ["seven wooden ladders", "ßöä日本語パスワード長い文", "k8-Lmq0!xPz2w", "anna likes her nine red bicycles"],
)
def test_good_passwords_pass(password: str) -> None:
    auth.check_password_policy(password, email="anna.berger@example.org", name="Anna Berger")


def test_roles_contain_each_other() -> None:
    roles = [auth.PERMISSIONS[role] for role in ("viewer", "operator", "engineer", "admin")]
    assert all(lower < upper for lower, upper in itertools.pairwise(roles))
    assert all(permission.endswith(":read") for permission in roles[0])


def test_require_names_the_role_that_would_do() -> None:
    viewer = auth.Principal("user", 1, "t", role="viewer")
    viewer.require("device:read")
    with pytest.raises(Forbidden, match="engineer"):
        viewer.require("device:write")
    with pytest.raises(Forbidden):
        auth.Principal("device", 1, "t").require("device:read")


def test_there_is_no_principal_outside_a_request() -> None:
    auth.set_current(None)
    with pytest.raises(Unauthorized):
        auth.current()


def test_tokens_are_compared_whatever_their_characters() -> None:
    stored = auth.device_token_hash("tökén")
    assert auth.device_token_matches("tökén", stored)
    assert not auth.device_token_matches("token", stored)
    assert not auth.same_text("é", "e")


def test_refresh_secrets_form_a_chain_that_only_the_key_continues(tmp_path: Path) -> None:
    first = auth.next_refresh_secret("seed")
    assert first == auth.next_refresh_secret("seed") != auth.next_refresh_secret(first)
    assert len(first) == 43
    auth._key.cache_clear()
    with active(config.read(_env_file=None, secret_key="z" * 40, data_dir=tmp_path)):
        assert auth.next_refresh_secret("seed") != first
    auth._key.cache_clear()
