"""Cursors, caches and the glue's own rules: no servers."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from iiot import cache, config, web
from iiot.errors import Invalid
from iiot.services.listing import escape_like
from iiot.services.tenants import slug_of
from iiot.web import paging
from iiot.web.front import _request_id
from iiot.web.routes import _holds_nul
from tests.services import active


@pytest.fixture(scope="module", autouse=True)
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A secret key and a data dir."""
    paging._key.cache_clear()
    with active(config.read(_env_file=None, secret_key="k" * 40, data_dir=tmp_path_factory.mktemp("data"))):
        yield
    paging._key.cache_clear()


@given(st.lists(st.one_of(st.integers(), st.text(), st.none(), st.dictionaries(st.text(), st.text())), max_size=4))
def test_a_cursor_brings_its_position_back(position: list[object]) -> None:
    assert web.decode_cursor("list", web.encode_cursor("list", position)) == position


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        web.decode_cursor("list", text)


@given(st.integers(0, 200))
def test_a_changed_cursor_is_refused(place: int) -> None:
    cursor = web.encode_cursor("list", ["name", 17]) or ""
    place %= len(cursor) - 1
    changed = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
    with pytest.raises(Invalid):
        web.decode_cursor("list", changed)


def test_bodies_must_forbid_what_they_do_not_declare() -> None:
    class Loose(BaseModel):
        name: str

    with pytest.raises(ValueError, match="must forbid"):
        web.Api("x").route("POST", "/x", body=Loose)
    with pytest.raises(ValueError, match="unknown permission"):
        web.Api("x").route("GET", "/x", permission="device:fly")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rb'"\u0000"', True),
        (rb'"a\\u0000"', False),
        (rb'"a\\\u0000"', True),
        (rb'"\\\\u0000"', False),
        (rb'"u0000"', False),
    ],
)
def test_nul_is_found_where_it_is(data: bytes, expected: bool) -> None:
    assert _holds_nul(data) == expected


@given(st.text(max_size=80))
def test_request_ids_are_safe_for_logs_and_headers(offered: str) -> None:
    assert _request_id(offered).isascii()
    assert 1 <= len(_request_id(offered)) <= 64
    assert "\n" not in _request_id(offered)


def test_memory_forgets_after_its_time_and_at_once_when_told() -> None:
    memory: cache.Memory[str, int] = cache.Memory(0.05)
    memory.get("a")
    memory.put("a", 1)
    assert memory.get("a") == 1
    deadline = time.monotonic() + 2
    while memory.get("a") == 1:
        assert time.monotonic() < deadline
    memory.put("a", 2)
    other: cache.Memory[str, int] = cache.Memory(60)
    other.get("b")
    other.put("b", 3)
    cache.forget_everywhere()
    assert memory.get("a") is None
    assert other.get("b") is None


def test_what_was_read_before_a_revocation_is_not_remembered_after_it() -> None:
    memory: cache.Memory[str, int] = cache.Memory(60)
    memory.get("a")
    mark = memory.mark()
    cache.forget_everywhere()
    memory.get("a")
    memory.put("a", 1, mark)
    assert memory.get("a") is None


def test_memory_is_bounded() -> None:
    memory: cache.Memory[int, int] = cache.Memory(60, size=10)
    memory.get(0)
    for number in range(100):
        memory.put(number, number)
    assert len(memory._entries) <= 10


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Ann's Pumps!", "ann-s-pumps"),
        ("Müller & Söhne", "muller-sohne"),
        ("東京", ""),
        ("--", ""),
        ("x" * 99, "x" * 40),
    ],
)
def test_slugs(name: str, slug: str) -> None:
    assert slug_of(name) == slug


def test_search_text_matches_itself_alone() -> None:
    assert escape_like("50%_\\") == "50\\%\\_\\\\"
