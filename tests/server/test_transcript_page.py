"""The transcript page in a real browser: every kind of row, and whatever hostile people write."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from browser import Look, visiting
from talks import HOSTILE, TOOLS

PHONE = Look(width=390)


def test_a_transcript_shows_every_row_by_its_kind(odd_tab, odd):
    """Users right, assistants left, system notes, tools and events where they happened."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    kinds = odd_tab.locator(".turn").evaluate_all("turns => turns.map(turn => turn.classList[1])")
    assert kinds == ["system", "user", "tool", "tool", "assistant", "event", "event", "assistant"]
    lane = odd_tab.locator(".turns").bounding_box()
    user = odd_tab.locator(".turn.user .bubble").bounding_box()
    bot = odd_tab.locator(".turn.assistant .bubble").first.bounding_box()
    assert user["x"] + user["width"] == pytest.approx(lane["x"] + lane["width"], abs=1)
    assert bot["x"] == pytest.approx(lane["x"], abs=1)
    assert user["x"] > bot["x"]
    assert odd_tab.locator(".turn time").count() == len(TOOLS["messages"])
    assert odd_tab.locator(".happened", has_text="upgraded").locator("dd").text_content() == "team"


def test_a_tool_call_is_folded_and_opens_by_keyboard(odd_tab, odd):
    """Closed it is one line; open it shows thought, input as JSON and observation."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    call = odd_tab.locator(".call").first
    assert not call.locator(".call-body").is_visible()
    call.locator("summary").first.focus()
    odd_tab.keyboard.press("Enter")
    assert call.locator(".call-body").is_visible()
    thought, given, observed = call.locator(".text").all_text_contents()
    assert thought == "Ask the station."
    assert given == json.dumps({"city": "Zürich", "days": 2}, indent=2, ensure_ascii=False)
    assert observed == '{"sky": "clear"}'
    assert odd_tab.locator(".call").nth(1).locator(".badge").text_content() == "Error"


def test_ratings_feedback_and_states_stand_where_they_belong(odd_tab, odd):
    """A rating by its message with what the user said; what went wrong as a badge, at the top too."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    rated = odd_tab.locator("#m-answer-1")
    assert rated.locator(".verdict .line").text_content().strip() == "Thumbs down"
    assert rated.locator("blockquote").text_content() == "It rained!"
    assert rated.locator(".cost summary").text_content() == "gpt-4o-mini · 1,234 tokens · 1.5 s"
    assert odd_tab.locator(".badges .badge").all_text_contents() == ["TimeoutError", "Interrupted"]
    assert odd_tab.locator(".turn").last.locator(".badge").text_content() == "Interrupted"
    assert odd_tab.locator(".verdict").count() == 2


def test_the_panel_says_all_that_is_known(odd_tab, odd):
    """User with a link to their list, numbers, times, feedback, and every metadata key."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    said = dict(
        odd_tab.locator(".panel .facts > div").evaluate_all(
            "rows => rows.map(row => [row.children[0].textContent, row.children[1].textContent.trim()])"
        )
    )
    wanted = {"User": "u_tools", "Messages": "8", "Model": "gpt-4o-mini", "Tokens": "1,234", "Id": "with-tools"}
    assert wanted | {"plan": "pro <b>", "model": "gpt-4o-mini"} == {
        key: said[key] for key in (*wanted, "plan", "model")
    }
    assert odd_tab.locator(".feedback .text").text_content() == "Good in the end."
    last = datetime.fromisoformat(odd_tab.locator(".about time").get_attribute("datetime"))
    assert abs(datetime.now(UTC) - last) < timedelta(minutes=10)
    odd_tab.locator(".about a").click()
    assert urlsplit(odd_tab.url).query == "user=u_tools"
    assert odd_tab.locator(".open").count() == 1


def test_a_message_can_be_linked_to(odd_tab, odd):
    """Its time leads to its own address, which marks it."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    odd_tab.locator("#m-answer-1 a.at").click()
    assert odd_tab.url.endswith("/conversations/with-tools#m-answer-1")
    assert odd_tab.locator(".turn:target").get_attribute("id") == "m-answer-1"
    assert odd_tab.locator(".turn.user").get_attribute("id") == "row-1"


def test_web_addresses_are_links_that_give_nothing_away(odd_tab, odd):
    """They open apart, pass on neither referrer nor weight, and end where the address ends."""
    odd_tab.goto(f"{odd.url}/conversations/with-tools")
    link = odd_tab.locator(".turn.user .text a")
    assert link.get_attribute("href") == "https://example.com/zurich"
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=lambda number: ascii(HOSTILE[number][:20]))
def test_hostile_text_is_shown_literally_and_does_nothing(browser, odd, number):
    """Whatever a message, name, user id, key or rating says is text; only http(s) and mailto become links."""
    with visiting(browser, odd.sign_in_url(), PHONE) as visit:
        page = visit.page
        assert visit.sideways() == 0
        page.goto(f"{odd.url}/conversations/hostile-{number}")
        shown = page.locator(".bubble").evaluate_all(
            "bubbles => bubbles.map(bubble => [...bubble.querySelectorAll('.text')].map(t => t.textContent).join(''))"
        )
        assert shown == [HOSTILE[number]] * 2
        observed = page.locator(".call-body h3:last-of-type ~ *").evaluate_all(
            "parts => parts.map(part => (part.querySelector('.text') ?? part).textContent).join('')"
        )
        assert observed == HOSTILE[number]
        assert page.locator(".about dd").first.text_content() == HOSTILE[number][:200]
        assert (
            page.locator("main script, main img, main iframe, main [onerror], main [onload], main [style]").count() == 0
        )
        schemes = page.locator("main a").evaluate_all("links => [...new Set(links.map(link => link.protocol))]")
        assert set(schemes) <= {"http:", "https:"}
        for details in page.locator("details").all():
            details.evaluate("element => { element.open = true }")
        assert visit.sideways() == 0
        assert visit.wrong == []


def test_a_megabyte_is_folded_and_can_be_unfolded(odd_tab, odd):
    """The page comes at once, the message's beginning first, the rest when asked for."""
    before = time.monotonic()
    odd_tab.goto(f"{odd.url}/conversations/hostile-{len(HOSTILE) - 1}")
    more = odd_tab.locator(".turn.user .more")
    assert more.locator("summary").text_content() == "Show 996,508 more characters"
    assert time.monotonic() - before < 10
    assert odd_tab.locator(".turn.user").bounding_box()["height"] < 2000
    more.locator("summary").click()
    assert more.locator(".text").is_visible()
    assert more.locator(".text").text_content().endswith(" the end")
