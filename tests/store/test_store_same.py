"""However a stream of calls is cut into batches, the store ends up the same."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from saying import NOON, bot, conversation, entry, everything, rating, thread, upsert, user

from contextwrap.model import Message
from contextwrap.store.duckdb import DuckDBStore
from contextwrap.store.records import ConversationQuery

IDS = st.sampled_from(["a", "b", "c"])
TEXTS = st.sampled_from(["hi", "yes", "\ud800"])
MESSAGES = st.lists(
    st.one_of(
        st.builds(user, TEXTS, id=st.none() | IDS),
        st.builds(bot, TEXTS, id=st.none() | IDS, rating=st.sampled_from([None, 1, 0, -1])),
        st.builds(Message, role=st.just("assistant"), type=st.just("tool"), name=TEXTS, input=TEXTS),
    ),
    min_size=1,
    max_size=4,
)
USERS = st.sampled_from([{}, {"user_id": "u"}, {"user_id": "v", "k": "1"}])
MARKS = st.lists(st.sampled_from([1, 0, -1]), min_size=1, max_size=3)
CALLS = st.one_of(
    st.builds(lambda said, meta: conversation(*said, **meta), MESSAGES, USERS),
    st.builds(lambda said, meta: upsert(*said, **meta), MESSAGES, USERS),
    st.builds(lambda id, said, meta: thread(id, *said, **meta), IDS, MESSAGES, USERS),  # noqa: A006
    st.builds(lambda rated, marks: rating(rated, *marks, feedback="f"), IDS, MARKS),
)
# (call, key, hours since noon): few keys, so that some repeat.
STREAMS = st.lists(st.tuples(CALLS, st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=14)


def _answers(entries, batches):
    """What a new store knows after `entries`, cut at `batches`."""
    with tempfile.TemporaryDirectory() as folder:
        store = DuckDBStore.open(Path(folder) / "store.duckdb")
        applied = duplicates = 0
        unmatched = []
        bounds = sorted({0, len(entries), *(cut for cut in batches if cut < len(entries))})
        for start, end in pairwise(bounds):
            result = store.apply(entries[start:end])
            applied, duplicates = applied + result.applied, duplicates + result.duplicates
            unmatched += result.unmatched
        answer = everything(store), store.summaries(ConversationQuery(per_page=50)), store.totals()
        store.close()
    return applied, duplicates, unmatched, answer


@settings(max_examples=25)
@given(stream=STREAMS, batches=st.sets(st.integers(1, 13), max_size=5))
def test_batches_do_not_change_what_is_stored(stream, batches):
    """Any cutting into batches gives the same store, counts and unmatched ratings as one call at a time."""
    entries = [entry(f"k{key}", call, at=NOON + timedelta(hours=hour)) for call, key, hour in stream]
    assert _answers(entries, batches) == _answers(entries, set(range(len(entries))))
