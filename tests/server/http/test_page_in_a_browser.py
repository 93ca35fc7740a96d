"""The page at / as a person uses it: in Chromium, from a real server. What the scripted worker cannot say is put in its place."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import MODEL, write_artifact
from browser import Visit, answer_with, chromium, say, settings
from playwright.sync_api import Browser, Locator, Page, expect
from serving_process import ServingProcess

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LONG = {"max_tokens": "400", "extra": '{"ignore_eos": true}'}
WEATHER = {"name": "get_weather", "parameters": {"type": "object"}}
CALL = [
    {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
]
MARKDOWN = """\
# Title

1. First **bold** and `code`:
   ```python
   a = "<b>"
   ```
2. Second
   - inner

| a | b |
| --- | --- |
| 1 | *2* |

[a link](https://example.org/x) and <img src=x onerror=alert(1)>"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("page") / "artifact")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact, "--step", "0.03") as server:
        yield server.ready()


@pytest.fixture
def visit(browser: Browser, server: ServingProcess) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def visit(**options: Any) -> Visit:
        visits.append(Visit(browser, server.url, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.check()
        each.context.close()


@pytest.fixture
def page(visit: Callable[..., Visit]) -> Page:
    return visit().page


def last_answer(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer").last


def whole_answer(page: Page) -> Locator:
    """The last one, when it has ended."""
    expect(last_answer(page)).to_have_attribute("aria-busy", "false")
    return last_answer(page)


def test_an_answer_is_streamed(page: Page) -> None:
    settings(page, **LONG)
    say(page, "a b c d e f g")
    answer = last_answer(page)
    expect(answer.locator(".prose")).to_have_text(re.compile(r"^user\s+a b c"))
    page.wait_for_function("before => document.querySelector('.writing .prose').textContent.length > before", arg=len(answer.inner_text()))
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New chat").click()
    settings(page, max_tokens="", extra="")
    say(page, "One, two, three, four, five: once I caught a fish alive.")
    answer = whole_answer(page)
    expect(answer.locator(".prose")).to_have_text(re.compile(r"^user\s+One, two.*caught a fish alive\.$"))
    expect(answer).to_contain_text(re.compile(r"\d+ tokens · [\d.,]+ tokens/s · first after [\d.]+ s"))
    expect(page.locator("#announcer")).to_contain_text("caught a fish alive.")


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop(page: Page, server: ServingProcess, way: str) -> None:
    settings(page, **LONG)
    say(page, "a b c d e f g")
    expect(last_answer(page)).to_contain_text("a b c")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    server.event("abort")
    expect(last_answer(page)).to_contain_text("stopped")
    expect(last_answer(page)).to_contain_text("a b c")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    say(page, "again")
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    page.keyboard.press("Escape")


def test_conversations_survive_a_reload_and_can_be_deleted(page: Page) -> None:
    say(page, "a lazy dog")
    expect(whole_answer(page)).to_contain_text("first after")
    page.reload()
    expect(last_answer(page)).to_contain_text("a lazy dog")
    page.get_by_role("button", name="New chat").click()
    say(page, "a quick fox")
    expect(whole_answer(page)).to_contain_text("first after")
    chats = page.locator("#chats a")
    expect(chats).to_have_text(["a quick fox", "a lazy dog"])
    chats.last.click()
    expect(last_answer(page)).to_contain_text("a lazy dog")
    chats.last.hover()
    page.get_by_role("button", name="Delete a lazy dog").click()
    expect(chats).to_have_text(["a quick fox"])
    page.get_by_role("button", name="Undo").click()
    expect(chats).to_have_text(["a quick fox", "a lazy dog"])
    chats.first.hover()
    page.get_by_role("button", name="Delete a quick fox").click()
    page.reload()
    expect(chats).to_have_text(["a lazy dog"])


def test_an_answer_that_a_reload_cuts_off_is_kept(page: Page) -> None:
    settings(page, **LONG)
    say(page, "a b c d e f g")
    expect(last_answer(page)).to_contain_text("a b c")
    page.reload()
    expect(last_answer(page)).to_contain_text("a b c")
    expect(last_answer(page)).to_contain_text("interrupted")


def test_export_and_import(page: Page, visit: Callable[..., Visit], tmp_path: Path) -> None:
    settings(page, system="the river", seed="7")
    say(page, "a lazy dog")
    expect(whole_answer(page)).to_contain_text("first after")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "chats.json")
    (exported,) = json.loads((tmp_path / "chats.json").read_text())["conversations"]
    assert [message["role"] for message in exported["messages"]] == ["user", "assistant"]
    other = visit().page
    other.locator("#import-files").set_input_files(tmp_path / "chats.json")
    expect(other.locator("#notice")).to_contain_text("1 conversation imported")
    other.locator("#chats a").click()
    expect(last_answer(other)).to_contain_text("the river")
    other.get_by_role("button", name="Settings").click()
    expect(other.get_by_label("Seed")).to_have_value("7")
    other.keyboard.press("Escape")
    (tmp_path / "other.json").write_text('{"conversations": [{"id": "x", "messages": [{"role": "admin"}]}]}')
    other.locator("#import-files").set_input_files(tmp_path / "other.json")
    expect(other.locator("#notice")).to_contain_text("other.json is no export")


def test_two_tabs_do_not_undo_each_other(visit: Callable[..., Visit]) -> None:
    both = visit()
    second = both.open()
    say(both.page, "a lazy dog")
    expect(whole_answer(both.page)).to_contain_text("first after")
    expect(second.locator("#chats a")).to_have_text(["a lazy dog"])
    say(second, "a quick fox")
    expect(whole_answer(second)).to_contain_text("first after")
    expect(both.page.locator("#chats a")).to_have_text(["a quick fox", "a lazy dog"])


def test_storage_that_is_damaged_is_passed_over(page: Page) -> None:
    page.evaluate("localStorage.setItem('engine.chat.x', '{'); localStorage.setItem('engine.chat.y', '{\"id\": 1}')")
    page.reload()
    say(page, "a lazy dog")
    expect(page.locator("#chats a")).to_have_text(["a lazy dog"])


def test_an_error_shows_its_hint(page: Page) -> None:
    settings(page, extra='{"top_k": -5}')
    say(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("top_k")
    settings(page, extra="", max_tokens="100000")
    page.get_by_role("button", name="Answer again").click()
    expect(alert).to_contain_text("100000")
    assert len(alert.inner_text().splitlines()) >= 2
    assert "hint:" not in alert.inner_text()
    settings(page, max_tokens="", extra="[1]")
    page.get_by_role("button", name="Answer again").click()
    expect(alert).to_contain_text("no JSON object")


def test_a_server_that_is_gone(artifact: Path, browser: Browser) -> None:
    with ServingProcess(artifact) as server:
        page = Visit(browser, server.ready().url).page
        expect(page.locator("#server")).to_have_text(MODEL)
    say(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("engine serve")
    page.context.close()


def test_a_server_that_is_loading(artifact: Path, browser: Browser) -> None:
    with ServingProcess(artifact, gated=True) as server:
        page = Visit(browser, server.url).page
        expect(page.locator("#server")).to_contain_text("weights")
        server.open_gate()
        expect(page.locator("#server")).to_have_text(MODEL)
        page.context.close()


def test_the_key_is_asked_for_where_there_is_one(artifact: Path, browser: Browser) -> None:
    with ServingProcess(artifact, api_key="sesame") as server:
        visit = Visit(browser, server.ready().url)
        page = visit.page
        key = page.get_by_label("This server asks for an API key")
        key.fill("wrong")
        key.press("Enter")
        expect(key).to_have_value("")
        say(page, "hello")
        expect(page.get_by_role("alert")).to_contain_text("API key")
        key.fill("sesame")
        key.press("Enter")
        expect(key).to_be_hidden()
        page.get_by_role("button", name="Answer again").click()
        expect(last_answer(page)).to_contain_text("hello")
        page.reload()
        expect(page.locator("#server")).to_have_text(MODEL)
        assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
        visit.check()
        visit.context.close()


def test_edit_and_answer_again(page: Page) -> None:
    say(page, "a lazy dog")
    expect(whole_answer(page)).to_contain_text("first after")
    say(page, "a quick fox")
    expect(whole_answer(page)).to_contain_text("first after")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("the river")
    page.get_by_label("Edit your message").press("Enter")
    expect(page.get_by_role("article", name="Answer")).to_have_count(1)
    expect(last_answer(page)).to_contain_text("the river")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    page.get_by_role("button", name="Answer again").last.click()
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    expect(whole_answer(page)).to_contain_text("first after")


def test_settings_reach_the_server(page: Page) -> None:
    bodies = answer_with(page, [{"content": "x"}])
    tools = json.dumps([WEATHER])
    settings(page, system="Be brief.", temperature="0", top_p="0.9", max_tokens="5", seed="3", tools=tools, extra='{"top_k": 4}')
    say(page, "hello")
    expect(last_answer(page)).to_contain_text("x")
    assert bodies == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "top_p": 0.9,
            "max_tokens": 5,
            "seed": 3,
            "tools": [{"type": "function", "function": WEATHER}],
            "top_k": 4,
        }
    ]


def test_reasoning_is_folded(page: Page) -> None:
    bodies = answer_with(
        page, [{"reasoning": "Let me ", "reasoning_content": "Let me "}, {"reasoning_content": "think."}, {"content": "Four."}], []
    )
    say(page, "two and two")
    answer = last_answer(page)
    expect(answer.locator(".prose")).to_have_text("Four.")
    thought = answer.get_by_text("Let me think.", exact=True)
    expect(thought).to_be_hidden()
    answer.get_by_text("Reasoning").click()
    expect(thought).to_be_visible()
    say(page, "sure?")
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "Four.", "reasoning_content": "Let me think."}


def test_calls_are_folded_and_answered_by_hand(page: Page) -> None:
    bodies = answer_with(page, CALL, [{"content": "It is 3 degrees."}])
    settings(page, tools=json.dumps([{"type": "function", "function": WEATHER}]))
    say(page, "How is the weather in Oslo?")
    arguments = last_answer(page).get_by_text('"city": "Oslo"')
    expect(arguments).to_be_hidden()
    page.get_by_text("Calls get_weather").click()
    expect(arguments).to_be_visible()
    page.get_by_label("Result of get_weather").fill('{"celsius": 3}')
    page.get_by_role("button", name="Send results").click()
    expect(last_answer(page)).to_contain_text("It is 3 degrees.")
    call = {"id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    assert bodies[1]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"celsius": 3}', "tool_call_id": "call-1", "name": "get_weather"},
    ]
    page.reload()
    expect(page.get_by_text("Result of get_weather")).to_be_visible()


def test_wrong_tools_are_told_where_they_are_typed(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator("[name=tools]").fill("[{")
    expect(page.get_by_text("The tools are not JSON.")).to_be_visible()
    page.locator("[name=tools]").fill("[{}]")
    expect(page.get_by_text("A tool has no name.")).to_be_visible()
    page.locator("[name=tools]").fill(json.dumps([WEATHER]))
    expect(page.locator("[name=tools]")).to_have_attribute("aria-invalid", "false")


@pytest.mark.parametrize("width", [1, 5, 1000])
def test_markdown(page: Page, width: int) -> None:
    """The same whatever the pieces in which it comes, and what looks like HTML is text."""
    answer_with(page, [{"content": MARKDOWN[at : at + width]} for at in range(0, len(MARKDOWN), width)])
    say(page, "hello")
    prose = last_answer(page).locator(".prose")
    expect(prose).to_contain_text("<img src=x onerror=alert(1)>")
    expect(prose.locator("h3")).to_have_text("Title")
    expect(prose.locator("> ol > li")).to_have_count(2)
    expect(prose.locator("> ol > li > .code pre")).to_have_text('a = "<b>"')
    expect(prose.locator("li strong")).to_have_text("bold")
    expect(prose.locator("> ol > li > ul > li")).to_have_text("inner")
    expect(prose.locator("tbody td")).to_have_text(["1", "2"])
    expect(prose.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
    expect(prose.locator("img, b")).to_have_count(0)


@pytest.mark.parametrize(
    "text", [">" * 5000, "+ " * 5000, "[a" * 5000, "**a " * 5000, "- a\n" * 5000], ids=["quotes", "items", "links", "bold", "list"]
)
def test_markdown_that_nobody_writes(page: Page, text: str) -> None:
    answer_with(page, [{"content": text}, {"content": "\n\nend"}])
    say(page, "hello")
    expect(whole_answer(page).locator(".prose")).to_contain_text("end")


def test_copy(visit: Callable[..., Visit]) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    answer_with(page, [{"content": "So:\n```\nx = 1\n```"}])
    say(page, "hello")
    page.get_by_role("button", name="Copy the code").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1"


def test_by_keyboard_alone(page: Page) -> None:
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("a lazy")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("dog")
    page.keyboard.press("Enter")
    expect(last_answer(page)).to_contain_text(re.compile(r"user\s+a lazy\s+dog.*first after"))
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.press("Alt+o")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Settings")).to_be_hidden()
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.press("Alt+l")
    expect(page.get_by_role("heading", name="Load")).to_be_visible()
    page.keyboard.press("Alt+l")
    expect(last_answer(page)).to_contain_text("a lazy")
    page.keyboard.press("Alt+n")
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_label("Message")).to_be_focused()


NAME_IN_FOCUS = "(({ariaLabel, labels, textContent}) => ariaLabel || labels?.[0]?.textContent || textContent)(document.activeElement)"


def test_the_order_of_focus(page: Page) -> None:
    """What is seen from the left to the right and from above, and each thing has a name and a ring."""
    say(page, "a lazy dog")
    expect(whole_answer(page)).to_contain_text("first after")
    page.get_by_text("Skip to the prompt").focus()
    names: list[str] = []
    while "Message" not in names and len(names) < 20:
        names.append(page.evaluate(NAME_IN_FOCUS))
        assert page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.id === 'prompt'"
        ), names
        page.keyboard.press("Tab")
    assert names == [
        *("Skip to the prompt", "New chat", "a lazy dog", "Delete a lazy dog", "Export", "Import"),
        *("Chat", "Load", "Theme: system", "Settings"),
        *("Conversation", "Copy", "Edit", "Copy", "Answer again", "Message"),
    ]


def test_the_load(page: Page, server: ServingProcess) -> None:
    page.get_by_role("link", name="Load").click()
    plots = page.get_by_role("main", name="Load").get_by_role("img")
    expect(plots).to_have_count(6)
    server.http.post("/v1/completions", json={"prompt": "a b c", "max_tokens": 200, "ignore_eos": True})
    expect(page.get_by_role("img", name=re.compile(r"^Generated: [\d.]+ tokens.s"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"^To the first token: [\d.]+ s"))).to_be_visible()
    drawn = page.locator("section.plot", has_text="Generated").locator("path.first")
    assert re.match(r"M[\d.]+ [\d.]+h0", drawn.get_attribute("d") or "")
    expect(page.locator("#facts div", has_text="Tokens generated").locator("dd")).to_have_text(re.compile(r"^[1-9]"))
    expect(page.locator("#facts div", has_text="Context").locator("dd")).to_have_text("512 tokens")


def scrapes(visit: Visit) -> int:
    return sum(request.url.endswith("/metrics") for request in visit.requests)


def test_the_chat_is_as_it_was_left(page: Page) -> None:
    answer_with(page, [{"reasoning": "Let me think."}, {"content": "word\n\n" * 200}])
    say(page, "hello")
    log = page.get_by_role("log")
    expect(whole_answer(page)).to_contain_text("word")
    expect(page).to_have_title("hello – Engine")
    page.get_by_text("Reasoning").click()
    log.evaluate("node => node.scrollTop = 100")
    page.get_by_role("link", name="Load").click()
    expect(page).to_have_title("Load – Engine")
    page.go_back()
    expect(page.get_by_text("Let me think.")).to_be_visible()
    assert log.evaluate("node => node.scrollTop") == 100


def test_the_load_is_asked_for_while_it_is_looked_at(visit: Callable[..., Visit]) -> None:
    seen = visit()
    assert scrapes(seen) == 0
    seen.page.goto(f"{seen.url}/#/load")
    expect(seen.page.get_by_role("img").first).to_be_visible()
    seen.page.get_by_role("link", name="Chat").click()
    before = scrapes(seen)
    seen.page.wait_for_timeout(5000)
    assert scrapes(seen) == before > 0


CONTRASTS = """() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0(\\.\\d+)?\\)$/.test(color)) return color;
    }
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!node.checkVisibility() || !texts.currentNode.data.trim() || node.closest(":disabled, .unseen, script, style")) continue;
    const [one, other] = [luminance(getComputedStyle(node).color), luminance(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push([texts.currentNode.data, ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out(visit: Callable[..., Visit], theme: Any) -> None:
    """By the ratio that WCAG 2.2 asks for, 4.5 to 1, in both themes."""
    page = visit(color_scheme=theme).page
    answer_with(page, [{"reasoning": "so"}, {"content": f"{MARKDOWN}\n\n> quoted"}])
    say(page, "hello")
    expect(last_answer(page)).to_contain_text("quoted")
    page.unroute("**/v1/chat/completions")
    settings(page, extra='{"top_k": -5}')
    say(page, "hello")
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate(CONTRASTS) == []
    page.get_by_role("link", name="Load").click()
    expect(page.get_by_role("img").first).to_be_visible()
    assert page.evaluate(CONTRASTS) == []


def background(page: Page) -> object:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_theme_is_the_systems_unless_one_is_chosen(visit: Callable[..., Visit]) -> None:
    page = visit(color_scheme="dark").page
    dark = background(page)
    page.emulate_media(color_scheme="light")
    assert background(page) != dark
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert background(page) == dark
    page.reload()
    assert background(page) == dark


def test_less_motion(visit: Callable[..., Visit]) -> None:
    moves = "getComputedStyle(document.querySelector('.writing .prose > :last-child'), '::after').animationName"
    for motion, expected in (("no-preference", "breathe"), ("reduce", "none")):
        page = visit(reduced_motion=motion).page
        settings(page, **LONG)
        say(page, "a b c d e f g")
        expect(page.locator(".writing .prose")).to_contain_text("a b c")
        assert page.evaluate(moves) == expected
        page.keyboard.press("Escape")


def test_a_phone(visit: Callable[..., Visit]) -> None:
    page = visit(**PHONE).page
    fits = "document.documentElement.scrollWidth <= innerWidth && document.querySelector('#log').scrollWidth <= innerWidth"
    wide = f"{'unbroken' * 20}\n\n```\n{'code ' * 60}\n```\n\n|{' cell |' * 20}\n|{' --- |' * 20}\n|{' cell |' * 20}\n\n`{'x' * 200}`"
    answer_with(page, [{"content": wide}, *CALL])
    page.get_by_label("Message").fill("w" * 300)
    page.get_by_label("Message").press("Enter")  # begins a line: there is no other way to do so
    expect(page.get_by_role("article")).to_have_count(0)
    page.get_by_role("button", name="Send").tap()
    expect(last_answer(page)).to_contain_text("unbroken")
    assert page.evaluate(fits)
    page.get_by_role("button", name="Conversations").tap()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    assert page.evaluate(fits)
    page.get_by_role("button", name="New chat").tap()
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    page.get_by_role("button", name="Settings").tap()
    assert page.evaluate(fits)
    page.get_by_role("button", name="Done").tap()
    page.get_by_role("link", name="Load").tap()
    expect(page.get_by_role("img")).to_have_count(6)
    assert page.evaluate(fits)


def test_the_policy_holds(visit: Callable[..., Visit]) -> None:
    """HTML cannot be made of text, no other script runs, and no page shows this one in a frame."""
    attacked = visit()
    page = attacked.page
    for attack in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "setTimeout('window.ran = true')",
        "document.createElement('script').src = 'https://example.org/x.js'",
    ):
        assert page.evaluate(f"(() => {{ try {{ {attack}; return 'done' }} catch (error) {{ return error.name }} }})()") != "done", attack
    page.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: '/foreign.png'}))")
    page.wait_for_function("() => true")
    assert page.evaluate("window.ran === undefined")
    assert any("img-src" in complaint for complaint in attacked.complaints)
    attacked.complaints.clear()
