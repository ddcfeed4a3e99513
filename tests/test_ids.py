"""Ids: made without asking anybody, sorted by age, the same for the same request."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from contextwrap.ids import derived_id, new_id, new_ids


def test_new_id_is_a_uuid7():
    """A new id is a UUID of version 7 and the RFC's variant, as 32 hex digits that begin with the time."""
    before = time.time_ns() // 1_000_000
    made = new_id()
    after = time.time_ns() // 1_000_000
    assert uuid.UUID(made).version == 7
    assert uuid.UUID(made).variant == uuid.RFC_4122
    assert made == uuid.UUID(made).hex
    assert before <= int(made[:12], 16) <= after


def test_new_ids_sort_by_age():
    """An id made in a later millisecond is greater."""
    made = []
    for _ in range(5):
        made.append(new_id())
        time.sleep(0.002)
    assert made == sorted(made)


def test_new_ids_never_repeat():
    """Threads that make ids at once make different ones."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_id(), range(20_000)))
    assert len(set(made)) == len(made)


def test_ids_of_one_moment_are_different_uuids():
    """Many made at once are as good as many made one by one."""
    made = [*new_ids(1000), *new_ids(0)]
    assert len(set(made)) == 1000
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in made} == {(7, uuid.RFC_4122)}


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\x1f", codec="utf-8")), min_size=1, max_size=4))
def test_derived_id_depends_on_its_parts_only(parts):
    """The same parts give the same id, other parts another."""
    assert derived_id(*parts) == derived_id(*parts)
    assert derived_id(*parts) != derived_id(*parts, "more")
    assert uuid.UUID(derived_id(*parts)).version == 5
