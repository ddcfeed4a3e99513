"""The store's file: made, kept, held by one process, and refused when it is none of ours."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import pytest
from saying import conversation, entry, everything, say, user

from contextwrap.errors import ContextwrapError, HomeInUseError
from contextwrap.store.duckdb import DuckDBStore
from contextwrap.store.records import Applied

HOLD = """
import sys
from pathlib import Path
from contextwrap.store.duckdb import DuckDBStore
store = DuckDBStore.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_what_was_applied_is_there_after_opening_again(tmp_path):
    """Conversations, applied keys and the order of messages outlive the store object."""
    path = tmp_path / "store.duckdb"
    store = DuckDBStore.open(path)
    say(store, conversation(user("1")), conversation(user("2")))
    before = everything(store)
    store.close()
    store = DuckDBStore.open(path)
    assert everything(store) == before
    assert store.apply([entry("k0", conversation(user("1")))]) == Applied(duplicates=1)
    store.close()


def test_closing_twice_is_closing_once(tmp_path):
    """A second close does nothing."""
    store = DuckDBStore.open(tmp_path / "store.duckdb")
    store.close()
    store.close()
    assert DuckDBStore.open(tmp_path / "store.duckdb").totals().conversations == 0


def test_a_second_process_is_told_who_has_the_store(tmp_path):
    """One line names the file and the process that holds it."""
    path = tmp_path / "store.duckdb"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HomeInUseError) as caught:
            DuckDBStore.open(path)
    finally:
        holder.communicate()
    assert str(path) in str(caught.value)
    assert f"process {holder.pid}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_store_is_refused(tmp_path):
    """What DuckDB cannot read is named in one line, and left as it is."""
    path = tmp_path / "store.duckdb"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ContextwrapError, match=r"cannot open the store .*store\.duckdb"):
        DuckDBStore.open(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_newer_file_is_refused(tmp_path):
    """A schema from the future is not touched; the message says what to do."""
    path = tmp_path / "store.duckdb"
    DuckDBStore.open(path).close()
    with duckdb.connect(path) as db:
        db.execute("INSERT INTO schema_version VALUES (999)")
    with pytest.raises(ContextwrapError, match="upgrade"):
        DuckDBStore.open(path)


def test_a_checkpoint_empties_the_write_ahead_log(tmp_path):
    """After it, everything is in the one file."""
    path = tmp_path / "store.duckdb"
    store = DuckDBStore.open(path)
    say(store, conversation(user("1")))
    log = path.with_name("store.duckdb.wal")
    assert log.stat().st_size > 0
    store.checkpoint()
    assert not log.exists() or log.stat().st_size == 0
    assert len(everything(store)) == 1
    store.close()
