"""rating_token() and rate_by_token(): a browser's thumb, on its way through the app that showed the answer."""

from __future__ import annotations

import stat
import threading

import pytest
from fakemodels import Echo
from parcels import conversations, ratings

from contextwrap.client import configure, default_client
from contextwrap.model import RatingMark
from contextwrap.ratings import rate_by_token, rating_token
from contextwrap.sessions import session

ENDPOINT = "http://127.0.0.1:9"


@pytest.fixture
def client(home):
    """The default client, in local mode."""
    return configure(home=home)


def _losses():
    return dict(default_client().stats().lost)


def _answer(home):
    return conversations(home)[-1].messages[-1]


def test_a_session_s_token_rates_its_answer(client, home):
    """Issued in a session, the token rates that session's last answer, later and outside of it."""
    with session(thread_id="t"):
        Echo().invoke("one")
        Echo().invoke("two")
        token = rating_token()
    assert rate_by_token(token, -1, "meh") is True
    (log,) = ratings(home)
    assert (log.rated, log.marks) == (_answer(home).id, (RatingMark(rating=-1, feedback="meh"),))
    assert _losses() == {}


def test_a_token_may_be_issued_before_the_answer(client, home):
    """A page that streams gets its token first; it rates the answer that comes."""
    with session(thread_id="t"):
        token = rating_token()
        Echo().invoke("one")
    assert rate_by_token(token, 1)
    assert [log.rated for log in ratings(home)] == [_answer(home).id]


def test_a_token_names_what_it_is_asked_to(client, home):
    """By message and by thread, outside of any session or in spite of it; beside a message the thread is its lane."""
    with session(thread_id="elsewhere"):
        tokens = [rating_token(message="m"), rating_token(thread="t"), rating_token(message="m", thread="t")]
    assert [rate_by_token(token, 1) for token in tokens] == [True] * 3
    assert [log.rated for log in ratings(home)] == ["m", "t", "m"]


def test_people_change_their_minds(client, home):
    """A token is good as often as it is used, until it expires."""
    token = rating_token(message="m")
    assert [rate_by_token(token, rating) for rating in (1, -1, 0)] == [True] * 3
    assert [log.marks[0].rating for log in ratings(home)] == [1, -1, 0]


def test_nothing_to_rate_is_counted(client):
    """Outside of a session, and without a name, there is no token."""
    assert rating_token() is None
    assert _losses() == {"rating token: there is no answer to rate": 1}


@pytest.mark.parametrize("wrong", [{"message": ""}, {"thread": "x" * 257}, {"message": 7}])
def test_an_id_that_is_none_gives_no_token(client, wrong):
    """What no server would take as an id is counted, and raises nothing."""
    assert rating_token(**wrong) is None
    assert sum(_losses().values()) == 1


def test_what_is_not_recorded_has_no_token(home):
    """With capture off, or contextwrap disabled, there will be nothing to rate; that is wanted, and no loss."""
    configure(home=home)
    with session(capture="off"):
        assert rating_token() is None
    assert _losses() == {}
    configure(home=home / "other", disabled=True)
    assert rating_token(message="m") is None
    assert rate_by_token("cw_rate_a.b.c", 1) is False
    assert _losses() == {}
    assert not (home / "other").exists()


def test_an_expired_token_rates_nothing(client, home):
    """When its time is over the rating is counted as lost, by its reason."""
    token = rating_token(message="m", expires_in=-1)
    assert rate_by_token(token, 1) is False
    assert (_losses(), ratings(home)) == ({"rating token: expired": 1}, [])


@pytest.mark.parametrize("expires_in", [float("inf"), float("nan")])
def test_a_token_expires(client, expires_in):
    """There is no token for ever."""
    assert rating_token(message="m", expires_in=expires_in) is None
    assert _losses() == {"rating token: it has to expire at some time": 1}


@pytest.mark.parametrize(
    "token", ["", "hello", None, 7, ["cw_rate_a.b.c"], {"a": 1}, "cw_rate_ü.b.c", b"cw_rate_a.b.c"]
)
def test_any_value_may_come_for_a_token(client, home, token):
    """What a browser sends is handed on as it is."""
    assert rate_by_token(token, 1) is False
    assert (_losses(), ratings(home)) == ({"rating token: malformed": 1}, [])


@pytest.mark.parametrize(
    ("rating", "feedback"), [(2, None), ("1", None), (True, None), (None, None), ([1], None), (1, 7), (1, {"a": 1})]
)
def test_any_value_may_come_for_a_rating(client, home, rating, feedback):
    """A rating that is none, and feedback that is no text, are counted; nothing is kept."""
    assert rate_by_token(rating_token(message="m"), rating, feedback) is False
    assert sum(_losses().values()) == 1
    assert ratings(home) == []


def test_feedback_is_cut(client, home):
    """Of a long feedback the first 2000 characters are kept."""
    assert rate_by_token(rating_token(message="m"), -1, "ü" * 2500)
    assert ratings(home)[0].marks[0].feedback == "ü" * 2000


def test_another_home_s_token_is_foreign(client, home, tmp_path):
    """Each home signs for itself."""
    token = rating_token(message="m")
    configure(home=tmp_path / "other")
    assert rate_by_token(token, 1) is False
    assert _losses() == {"rating token: signed with no key that is good here": 1}


def test_another_tenant_s_token_is_refused(home):
    """A token is for the tenant that it was issued in."""
    configure(home=home, tenant_id="red")
    token = rating_token(message="m")
    assert rate_by_token(token, 1) is True
    configure(home=home, tenant_id="blue")
    assert rate_by_token(token, 1) is False
    assert _losses() == {"rating token: of another tenant": 1}
    assert [log.tenant_id for log in ratings(home)] == ["red"]


def test_with_an_endpoint_the_api_key_signs(home):
    """The key, and no file: any process with the same key takes the token, one with another does not."""
    configure(home=home, endpoint=ENDPOINT, token="cw_ingest_one", exit_timeout=0)
    token = rating_token(message="m")
    assert "ingest" not in token
    assert not (home / "rating.key").exists()
    client = configure(home=home / "second", endpoint=ENDPOINT, token="cw_ingest_one", exit_timeout=0)
    assert rate_by_token(token, 1) is True
    assert (client.flush(0).pending, dict(client.stats().lost)) == (1, {})
    configure(home=home / "third", endpoint=ENDPOINT, token="cw_ingest_two", exit_timeout=0)
    assert rate_by_token(token, 1) is False


def test_the_home_s_key_is_its_owner_s_alone(client, home):
    """The file is made when it is first needed, is random, readable by its owner only, and stays."""
    assert not (home / "rating.key").exists()
    assert rating_token(message="m") is not None
    first = (home / "rating.key").read_bytes()
    assert (len(first), len(set(first)) > 8) == (32, True)
    assert stat.S_IMODE((home / "rating.key").stat().st_mode) == 0o600
    assert rating_token(message="m") is not None
    assert (home / "rating.key").read_bytes() == first
    assert sorted(path.name for path in home.iterdir()) == ["outbox", "rating.key"]


def test_those_who_come_first_together_make_one_key(client, home):
    """Sixteen first uses at once sign with the same key."""
    start, tokens = threading.Barrier(16), []

    def first():
        start.wait()
        tokens.append(rating_token(message="m"))

    threads = [threading.Thread(target=first) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rate_by_token(token, 1) for token in tokens] == [True] * 16
    assert sorted(path.name for path in home.iterdir()) == ["outbox", "rating.key"]


def test_a_damaged_key_signs_nothing(client, home):
    """A key file that was emptied is said in the loss, and opens nothing."""
    token = rating_token(message="m")
    (home / "rating.key").write_bytes(b"")
    assert rating_token(message="m") is None
    assert rate_by_token(token, 1) is False
    assert _losses() == {
        "rating token: the signing secret is shorter than 32 bytes": 1,
        "rating token: signed with no key that is good here": 1,
    }


def test_a_home_that_cannot_be_written_raises_nothing(client, home, monkeypatch):
    """What fails on disk is counted, and the host's page goes out without a token."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    (home / "rating.key").mkdir()
    assert rating_token(message="m") is None
    assert rate_by_token("cw_rate_a.b.c", 1) is False
    assert _losses() == {"rating_token: IsADirectoryError": 1, "rate_by_token: IsADirectoryError": 1}
