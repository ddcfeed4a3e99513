from __future__ import annotations

from html import unescape
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import LOOKS, Look, visiting
from talks import HOSTILE, MADE_UP, ODD_IDS

PHONE = Look(width=390)


def _rows(page):
    """The list on the page as plain data."""
    return page.locator(".rows tbody tr").evaluate_all(
        """rows => rows.map(row => {
            const text = name => row.querySelector(name)?.textContent.trim() ?? null;
            const marks = name => Number(row.querySelector(name)?.lastChild.textContent ?? 0);
            return {
                question: text('.open'), answer: text('.answer'), user: text('.who'),
                messages: parseInt(text('.size')), up: marks('.rate.up'), down: marks('.rate.down'),
                last: row.querySelector('time').dateTime,
            };
        })"""
    )


def _expected(conversation):
    """The row that a conversation should have, from what was sent."""
    messages = conversation["messages"]
    ratings = [message.get("rating") for message in messages]
    return {
        "question": messages[0]["message"],
        "answer": messages[-1]["message"],
        "user": conversation["metadata"].get("user_id", "Anonymous"),
        "messages": len(messages),
        "up": ratings.count(1),
        "down": ratings.count(-1),
        "last": messages[-1]["event_timestamp"],
    }


def _day(conversation):
    return conversation["messages"][-1]["event_timestamp"][:10]


def _all_pages(page):
    """The rows of this page and of all after it."""
    rows = _rows(page)
    while page.locator("a[rel=next]").count():
        page.locator("a[rel=next]").click()
        rows += _rows(page)
    return rows


def _count(page):
    return page.locator("#count strong").text_content()


def test_the_watch_sees_what_must_not_happen(browser, empty):
    """Script in the page, a request elsewhere and a dialog are all noticed: no test below passes unseeing."""
    with visiting(browser, f"{empty.url}/signin") as visit:
        visit.page.evaluate(
            "document.body.append(Object.assign(new Image(), {src: 'https://elsewhere.example/x.png'}))"
        )
        visit.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'alert(1)'}))")
        visit.page.evaluate("alert(2)")
        visit.page.wait_for_function("document.images.length === 1")
        seen = " ".join(visit.wrong)
        assert all(word in seen for word in ("img-src", "script-src", "dialog: 2"))
        assert "dialog: 1" not in seen


@pytest.mark.parametrize("look", LOOKS, ids=str)
@pytest.mark.parametrize("path", ["/conversations?from=2020-01-01&rating=1", "/conversations/with-tools"])
def test_a_page_is_clean_and_accessible_at_every_size_and_theme(browser, odd, look, path):
    """No error, no violation of the policy, no request to others, no sideways scroll, nothing for axe to say."""
    with visiting(browser, odd.sign_in_url(), look) as visit:
        visit.page.goto(odd.url + path)
        assert visit.page.locator("h1").count() == 1
        assert visit.sideways() == 0
        for details in visit.page.locator("details").all():
            details.evaluate("element => { element.open = true }")
        assert visit.sideways() == 0
        assert visit.wrong == []
        # Not under watch: axe brings a script of its own.
        assert Axe().run(visit.page).response["violations"] == []


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_the_pages_without_data_are_accessible_too(browser, empty, look):
    """Empty list, no match, sign-in and error."""
    with visiting(browser, f"{empty.url}/signin", look) as visit:
        assert Axe().run(visit.page).response["violations"] == []
        visit.page.goto(empty.sign_in_url())
        for path in ("/conversations", "/conversations?user=nobody", "/conversations?rating=5"):
            visit.page.goto(empty.url + path)
            assert visit.sideways() == 0
            assert Axe().run(visit.page).response["violations"] == []


def test_an_empty_server_says_how_to_begin(browser, empty):
    """Three lines to paste, and no filters for nothing; a filter that finds nothing says something else."""
    with visiting(browser, empty.sign_in_url()) as visit:
        page = visit.page
        code = page.locator("pre code").text_content().splitlines()
        assert code[:2] == ["import contextwrap", "bot = contextwrap.wrap(chain)"]
        assert (len(code), page.locator("form.filters").count()) == (3, 0)
        page.goto(f"{empty.url}/conversations?user=nobody")
        assert page.locator("h2").text_content() == "No conversation matches"
        assert page.locator("pre").count() == 0
        page.get_by_role("link", name="Show all conversations").click()
        assert urlsplit(page.url).query == ""
        assert visit.wrong == []


def test_every_conversation_is_on_exactly_one_page_with_its_own_numbers(tab):
    """Paging through shows what was sent, newest first, each once; the count and range agree."""
    assert _count(tab) == "60"
    assert tab.locator(".shown").text_content() == "1–25 of 60"  # noqa: RUF001  a range's dash
    newest_first = sorted(map(_expected, MADE_UP), key=lambda row: row["last"], reverse=True)
    assert _all_pages(tab) == newest_first
    assert tab.locator(".shown").text_content() == "51–60 of 60"  # noqa: RUF001
    assert tab.locator(".pager [aria-current=page]").text_content() == "3"


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("rating=1", lambda item: any(message.get("rating") == 1 for message in item["messages"])),
        ("rating=-1", lambda item: any(message.get("rating") == -1 for message in item["messages"])),
        ("user=user+3", lambda item: item["metadata"].get("user_id") == "user 3"),
        ("user=user", lambda item: False),
        (f"from={_day(MADE_UP[20])}", lambda item: _day(item) >= _day(MADE_UP[20])),
        (f"to={_day(MADE_UP[40])}", lambda item: _day(item) <= _day(MADE_UP[40])),
        (
            f"user=user+1&rating=1&from={_day(MADE_UP[50])}&to={_day(MADE_UP[3])}",
            lambda item: (
                item["metadata"].get("user_id") == "user 1"
                and any(message.get("rating") == 1 for message in item["messages"])
                and _day(MADE_UP[50]) <= _day(item) <= _day(MADE_UP[3])
            ),
        ),
    ],
)
def test_a_filter_shows_all_that_it_names_and_nothing_else(tab, filled, query, holds):
    """Rows and count equal those worked out from what was sent."""
    tab.goto(f"{filled.url}/conversations?{query}")
    expected = [_expected(item) for item in MADE_UP if holds(item)]
    assert _count(tab) == str(len(expected))
    assert _all_pages(tab) == sorted(expected, key=lambda row: row["last"], reverse=True)


def test_the_form_makes_a_url_that_the_back_button_and_chips_understand(tab):
    """Only what was said is in the URL; back returns to the list before; a chip takes its filter away."""
    tab.get_by_label("User").fill("user 1")
    tab.get_by_label("Rating").select_option(label="Thumbs up")
    tab.get_by_role("button", name="Filter").click()
    assert urlsplit(tab.url).query == "user=user+1&rating=1"
    assert tab.get_by_label("User").input_value() == "user 1"
    tab.go_back()
    assert urlsplit(tab.url).query == ""
    assert _count(tab) == "60"
    tab.go_forward()
    tab.get_by_role("link", name="Remove filter: User").click()
    assert urlsplit(tab.url).query == "rating=1"
    assert tab.locator(".chip").count() == 1


def test_a_user_in_the_list_leads_to_that_users_conversations(tab):
    """One click shows everything of one user, filters in force kept."""
    user = next(row["user"] for row in _rows(tab) if row["user"] != "Anonymous")
    tab.locator(".who a", has_text=user).first.click()
    assert parse_qs(urlsplit(tab.url).query) == {"user": [user]}
    assert {row["user"] for row in _rows(tab)} == {user}


@pytest.mark.parametrize("look", [Look(), PHONE], ids=str)
def test_filters_and_rows_are_reached_by_keyboard_in_the_order_one_sees(browser, filled, look):
    """From the top: skip link, navigation, fields, button, first row; Enter opens it."""
    with visiting(browser, filled.sign_in_url(), look) as visit:
        page, reached = visit.page, []
        first = page.locator(".open").first.text_content()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "() => { const at = document.activeElement; return at.id || at.className || at.textContent.trim() }"
                )
            )
            if reached[-1] == "open":
                break
        order = ["skip", "brand", "Conversations", "plain-button", "f-user", "f-rating", "f-from", "f-to"]
        assert [name for name in dict.fromkeys(reached) if name in order] == order
        assert reached[-1] == "open"
        assert page.evaluate("getComputedStyle(document.activeElement, '::after').outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.wait_for_url("**/conversations/c-*")
        assert page.locator("h1").text_content() == first
        assert visit.wrong == []


def test_the_skip_link_leads_past_the_navigation(tab):
    """First stop of the keyboard, shown when it is there."""
    tab.keyboard.press("Tab")
    assert tab.locator(".skip").bounding_box()["y"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"


def test_a_transcript_leads_back_to_the_list_it_was_opened_from(tab, filled):
    """Filters and page survive the way there and back."""
    tab.goto(f"{filled.url}/conversations?from=2020-01-01&page=2")
    tab.locator(".open").first.click()
    assert "/conversations/c-" in tab.url
    tab.locator(".up-link").click()
    assert tab.url == f"{filled.url}/conversations?from=2020-01-01&page=2"


def test_a_list_works_without_script(browser, filled):
    """Filtering and opening need no JavaScript."""
    with visiting(browser, filled.sign_in_url(), Look(script=False)) as visit:
        visit.page.get_by_label("Rating").select_option("-1")
        visit.page.get_by_role("button", name="Filter").click()
        visit.page.wait_for_url("**/conversations?rating=-1")
        visit.page.locator(".open").first.click()
        visit.page.wait_for_url("**/conversations/c-*")
        assert visit.page.locator(".turn").count() > 0


def test_hostile_user_ids_filter_like_any_other(odd_tab):
    """The link of such a user leads to their one conversation."""
    rows = len(HOSTILE) + len(ODD_IDS) + 1
    assert _count(odd_tab) == str(rows)
    for number in range(len(HOSTILE)):
        odd_tab.goto(f"{odd_tab.url.partition('/conversations')[0]}/conversations/hostile-{number}")
        odd_tab.locator(".about a").click()
        assert _count(odd_tab) == "1"


def test_a_conversation_opens_from_the_list_whatever_its_id(odd_tab):
    """Slashes, percent signs, white space, question marks: the row leads to the right transcript."""
    links = dict(odd_tab.locator(".open").evaluate_all("links => links.map(link => [link.textContent, link.href])"))
    for name in ODD_IDS:
        odd_tab.goto(links[f"I am {name}"])
        assert odd_tab.locator(".id").text_content() == name


@pytest.mark.parametrize(
    "query", ["page=abc", "rating=5", "from=nonsense", "to=2026-02-30", "from=2026-02-02&to=2026-02-01", "page=%00"]
)
def test_a_query_that_means_nothing_is_answered_in_words(http, query):
    """400, a page that says what is wrong, and a way back to the list."""
    answer = http.get(f"/conversations?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/html")
    assert "That filter cannot be used" in answer.text
    assert 'href="/conversations"' in answer.text


@pytest.mark.parametrize(
    ("query", "leads_to"),
    [
        ("page=4", "/conversations?page=3"),
        ("page=99999999999999999999999", "/conversations?page=3"),
        ("user=nobody&page=7", "/conversations?user=nobody"),
        ("user=&rating=1&from=&to=", "/conversations?rating=1"),
        ("user=&rating=&from=&to=&page=", "/conversations"),
    ],
)
def test_a_page_that_is_not_there_leads_to_the_nearest(http, query, leads_to):
    """Beyond the end comes the last page; what was left empty leaves the URL."""
    answer = http.get(f"/conversations?{query}")
    assert (answer.status_code, answer.headers["location"]) == (303, leads_to)
    assert http.get(leads_to).status_code == 200


@pytest.mark.parametrize(
    "query", ["page=0", "page=-3", "user=%00", "user=%ff%fe", "unknown=1", "to=9999-12-31", "from=0001-01-01"]
)
def test_an_odd_query_is_no_error(http, query):
    """Zero and negative pages are the first; bytes that are no text match nobody."""
    assert http.get(f"/conversations?{query}").status_code == 200


@pytest.mark.parametrize("name", ["nothing-here", "%00", "%ff", "a" * 3000, "c-01%2F.."])
def test_an_unknown_conversation_is_a_404_in_words(http, name):
    """Whatever is asked for."""
    answer = http.get(f"/conversations/{name}")
    assert answer.status_code == 404
    assert "No such conversation" in answer.text


def test_a_transcript_takes_no_harm_from_a_bad_list_to_go_back_to(http):
    """Then the way back is the whole list, and it never leads elsewhere."""
    answer = http.get("/conversations/c-01?rating=5&next=https://evil.example")
    assert answer.status_code == 200
    assert 'class="up-link" href="/conversations"' in answer.text
    assert "evil" not in answer.text


def test_the_front_door_leads_to_the_list(http):
    """/ and a slash too many."""
    for path in ("/", "/conversations/"):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/conversations")


def test_transcripts_are_kept_by_no_cache_and_styles_change_their_address(http):
    """Pages are personal; a stylesheet's URL names its content."""
    answer = http.get("/conversations/c-01")
    assert answer.headers["cache-control"] == "no-store"
    style = unescape(answer.text).split('rel="stylesheet" href="')[1].split('"')[0]
    assert style.startswith("/static/style.css?v=")
    assert http.get(style).headers["content-type"].startswith("text/css")


def test_nobody_reads_without_signing_in(filled):
    """Each page leads to the door, and from there back to the page."""
    with httpx.Client(base_url=filled.url, headers={"Accept": "text/html"}) as stranger:
        for path in ("/conversations?rating=1", "/conversations/c-01"):
            answer = stranger.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/signin?next={quote(path, safe='')}"
            assert "Question" not in answer.text


def test_a_tenants_key_shows_that_tenant_only(filled):
    """Another tenant's list is empty and its readers find no transcript."""
    key = filled.key("read", tenant="other")
    with httpx.Client(base_url=filled.url, headers={"Accept": "text/html"}) as reader:
        assert reader.post("/signin", data={"key": key}).status_code == 303
        assert "Record your first conversation" in reader.get("/conversations").text
        assert reader.get("/conversations/c-01").status_code == 404


def test_one_signs_in_with_a_key_and_out_again(browser, filled):
    """A wrong key is told so; a right one leads on to the page asked for; signed out, the door is shut."""
    with visiting(browser, f"{filled.url}/conversations?rating=1") as visit:
        page = visit.page
        page.get_by_label("Key").fill(filled.key("read"))
        page.get_by_role("button", name="Sign in").click()
        assert page.url == f"{filled.url}/conversations?rating=1"
        page.get_by_role("button", name="Sign out").click()
        page.goto(f"{filled.url}/conversations")
        assert urlsplit(page.url).path == "/signin"
        assert visit.wrong == []
        page.get_by_label("Key").fill("not a key")
        page.keyboard.press("Enter")
        assert page.get_by_role("alert").text_content() == "This key is not known here."
