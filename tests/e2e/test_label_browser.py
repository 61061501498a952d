"""People rank answers in a real browser; the page is reloaded, its server killed, and what they said is in the files.

Needs a Chromium (`CHROMIUM` names one, else the usual names are tried); skipped without one, failed in CI.

The picture in docs/feedback.md is made by these tests:

    TUNEMILL_SCREENSHOT=docs/images/label.png pytest tests/e2e/test_label_browser.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.test_report_browser import CONTRAST
from tunemill import labels, preferences, records, servers
from tunemill.preferences import Ranking
from tunemill.records import Completions, row_id

pytestmark = pytest.mark.e2e

HOSTILE = (
    """</script><script>document.title = "taken"</script> <img src=x onerror="document.title='taken'"> ${1} `2` **3**"""
)
ANSWERS = {
    "How do I tell a child that our dog has died?": (
        "Say it plainly and kindly: the dog has died, its body stopped working, and it cannot come back. Let the child ask, cry "
        "and remember. Avoid “put to sleep”, which can make bedtime frightening.",
        "Say that the dog went to live on a farm far away. Children forget quickly, and a new puppy on the same day helps.",
        "Tell the truth in simple words, and say that being sad is all right. You might look at pictures together.",
        "dog dog the the child of farm, is and it it it it it it it",
    ),
    **{
        f"Question {number}: which of these is best?": tuple(
            f"Answer {letter} to question {number}." + (f" {HOSTILE}" if letter == "b" else "") for letter in "abcd"
        )
        for number in range(2, 12)
    },
}
ITEMS = [Completions(row_id(prompt, *texts), prompt, texts, "test") for prompt, texts in ANSWERS.items()]

# As in the tests of `preferences`: "a>bc" is a before b and c, which are tied; after a slash, what is nonsense.
ADA = ["ac>b/d", "b>a>d>c", "a>bc>d", "d>c>b>a", "", "c>a>b/d", "a>b>c>d", "abcd", "b>d>ac", "c>d>a>b", "d>a>b>c"]
GRACE = ["a>c>b/d", "b>a>c>d"]


def environment() -> dict[str, str]:
    """As a user starts it: NiceGUI does something else under pytest."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | {
        "PYTHONPATH": str(ROOT)
    }


class Server:
    """`python -m tunemill.labelling`, that can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, servers.free_port(0)
        records.write(folder / "completions.jsonl", ITEMS)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tunemill.labelling", "--port", str(self.port)]
        command += ["--completions", "completions.jsonl", "--labels", "labels"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 60
        while servers.fetch(self.url) is None:
            said = (self.folder / "server.log").read_text()
            assert self.process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def lines(self, labeler: str) -> list[dict[str, Any]]:
        return [row for _, row in records.read_objects(self.folder / "labels" / f"{labeler}.jsonl")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.kill()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """A function that opens the page in a browser of its own, and afterwards fails on any error or foreign address."""
    contexts, complaints = [], []

    def begin(server: Server, name: str, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme, locale="en-US")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine that does other things as well
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not local(request.url) else None)
        page.goto(server.url)
        page.get_by_label("Your name").fill(name)
        page.keyboard.press("Enter")
        page.get_by_text(re.compile(r"^Prompt 1 of")).wait_for()
        return page

    def local(url: str) -> bool:
        return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))

    yield begin
    assert {page.title() for context in contexts for page in context.pages} <= {"Rank answers"}
    for context in contexts:
        context.close()
    assert complaints == []


def cards(page: Any, item: Completions) -> dict[str, int]:
    """Letter of an answer → its number on the page, from 1."""
    texts = page.locator(".answer > .text").all_text_contents()
    assert sorted(texts) == sorted(item.completions)  # to the character: none of it is markup
    return {letter: texts.index(text) + 1 for letter, text in zip("abcd", item.completions, strict=True)}


def arrive(page: Any, number: int) -> Completions:
    """Wait until the prompt is there."""
    page.get_by_text(f"Prompt {number} of {len(ITEMS)}", exact=True).wait_for()
    item = ITEMS[number - 1]
    assert page.locator(".prompt .text").text_content() == item.prompt
    return item


def press(page: Any, number: int, notation: str) -> None:
    """Rank a prompt by keyboard, without saving it."""
    keys = cards(page, arrive(page, number))
    order, _, nonsense = notation.partition("/")
    for tied in order.split(">"):
        for at, letter in enumerate(tied):
            page.keyboard.press(f"{'Shift+' if at else ''}Digit{keys[letter]}")
    for at, letter in enumerate(nonsense):
        page.keyboard.press("nx"[at % 2])
        page.keyboard.press(f"Digit{keys[letter]}")


def saved(page: Any, number: int) -> None:
    page.get_by_text(re.compile(rf"^Saved: prompt {number},")).wait_for()


def ranked(item: Completions, notation: str, labeler: str) -> Ranking:
    order, _, nonsense = notation.partition("/")
    ranks = {letter: float(rank) for rank, tied in enumerate(order.split(">"), start=1) for letter in tied}
    assert set(ranks) | set(nonsense) == set("abcd")
    return Ranking(item.prompt, item.completions, tuple(ranks.get(each) for each in "abcd"), labeler)


def test_two_people_rank_ten_prompts_through_reload_and_kill(visit: Any, server: Server) -> None:
    page = visit(server, " Ada ")
    assert page.url == f"{server.url}/as/ada"
    assert page.locator(".progress").inner_text() == "0 of 11"
    page.keyboard.press("Enter")
    page.get_by_text("Not saved: 4 answers have no place yet").wait_for()
    assert not (server.folder / "labels").exists()

    press(page, 1, ADA[0])
    if "TUNEMILL_SCREENSHOT" in os.environ:
        picture = Path(os.environ["TUNEMILL_SCREENSHOT"])
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.get_by_text("All placed").wait_for()
        page.screenshot(path=picture, animations="disabled")
    page.keyboard.press("Enter")
    saved(page, 1)
    assert len(server.lines("ada")) == 1  # on the disk before the page says so
    for number in (2, 3):
        press(page, number, ADA[number - 1])
        page.keyboard.press("Enter")
        saved(page, number)

    # A reload in the middle of a prompt.
    press(page, 4, "d>c")
    page.get_by_text("2 more to place").wait_for()
    half = page.locator(".order").inner_text()
    page.reload()
    order = cards(page, arrive(page, 4))
    page.get_by_text("2 more to place").wait_for()
    assert page.locator(".order").inner_text() == half == f"{order['d']} > {order['c']}"
    assert page.locator(".progress").inner_text() == "3 of 11"
    for letter in "ba":
        page.keyboard.press(f"Digit{order[letter]}")
    page.keyboard.press("Enter")
    saved(page, 4)

    arrive(page, 5)
    page.keyboard.press("s")
    saved(page, 5)
    assert page.locator(".progress").inner_text() == "4 of 11, 1 skipped"

    # The server is killed in the middle of a prompt, and in the middle of a line.
    press(page, 6, "c>a")
    page.get_by_text("2 more to place").wait_for()
    page.evaluate("window.before = true")
    server.kill()
    with (server.folder / "labels/ada.jsonl").open("a") as file:
        file.write('{"id": "0123456789ab", "prompt": "cut sho')
    server.start()
    # The page comes back by itself.
    page.wait_for_function("!window.before && document.querySelector('.order')?.textContent")
    order = cards(page, arrive(page, 6))
    assert page.locator(".progress").inner_text() == "4 of 11, 1 skipped"
    assert page.locator(".order").inner_text() == f"{order['c']} > {order['a']}"
    page.keyboard.press(f"Digit{order['b']}")
    page.keyboard.press("x")
    page.keyboard.press(f"Digit{order['d']}")
    page.keyboard.press("Enter")
    saved(page, 6)

    # Somebody else, at the same time, who sees the answers in another order.
    other = visit(server, "grace")
    shuffled = [cards(page, ITEMS[6])]
    for number, notation in enumerate(GRACE, start=1):
        shuffled.append(cards(other, arrive(other, number)))
        press(other, number, notation)
        other.keyboard.press("Enter")
        saved(other, number)
    assert len({tuple(each.items()) for each in shuffled}) > 1

    # A mistake that is undone before it is saved, and one that is corrected after.
    press(page, 7, "a>b>d")
    page.keyboard.press("Backspace")
    order = cards(page, ITEMS[6])
    for letter in "cd":
        page.keyboard.press(f"Digit{order[letter]}")
    page.keyboard.press("Enter")
    saved(page, 7)
    press(page, 8, "d>c>b>a")
    page.keyboard.press("Enter")
    saved(page, 8)
    page.keyboard.press("b")
    arrive(page, 8)
    assert page.locator(".state").inner_text() == "saved"
    for _ in "abcd":
        page.keyboard.press("Backspace")
    press(page, 8, ADA[7])
    page.get_by_text("changed since it was saved").wait_for()
    page.keyboard.press("Enter")
    saved(page, 8)

    # By mouse.
    item = arrive(page, 9)
    boxes = {letter: page.locator(".answer").nth(number - 1) for letter, number in cards(page, item).items()}
    boxes["b"].locator(".text").click()
    boxes["d"].get_by_role("button", name="Rank 2nd").click()
    boxes["c"].get_by_role("button", name="Nonsense").click()
    boxes["c"].get_by_role("button", name="Take back").click()
    boxes["a"].get_by_role("button", name="Rank 3rd").click()
    boxes["c"].get_by_role("button", name="Tie").click()
    page.get_by_text("All placed").wait_for()
    page.keyboard.press("Enter")  # goes to the page and not to the button that was clicked on
    saved(page, 9)
    for number in (10, 11):
        press(page, number, ADA[number - 1])
        page.get_by_role("button", name="Save and go on").click()
        saved(page, number)
    page.get_by_text("You ranked 10 of 11 prompts; 1 skipped.").wait_for()

    # What is in the files is what they said, in the order of the file whatever order they saw.
    expected = [ranked(item, said, "ada") for item, said in zip(ITEMS, ADA, strict=True) if said]
    expected += [ranked(item, said, "grace") for item, said in zip(ITEMS, GRACE, strict=False)]
    found = labels.read(server.folder / "labels", ITEMS)
    assert (found.rankings, found.skipped, found.refused) == (expected, 1, [])
    assert len(server.lines("ada")) == 12  # eleven, and the correction
    assert {row["criterion"] for row in server.lines("ada")} == {labels.CRITERION}

    pairs, left_out = preferences.pairs(found.rankings, gap=0.0, cap=10, seed=0)
    letters = {text: letter for item in ITEMS for letter, text in zip("abcd", item.completions, strict=True)}
    by_prompt: dict[int, set[str]] = {number: set() for number in range(1, 12)}
    for each in pairs:
        number = 1 + [item.prompt for item in ITEMS].index(each.prompt)
        by_prompt[number].add(letters[each.chosen] + letters[each.rejected])
    assert by_prompt == {
        1: {"ab", "cb", "ac"},  # a tie has no opinion on a and c: grace's counts
        2: {"ba", "bd", "bc", "ad", "ac"},  # they contradict each other on c and d
        3: {"ab", "ac", "ad", "bd", "cd"},
        4: {"dc", "db", "da", "cb", "ca", "ba"},
        5: set(),
        6: {"ca", "cb", "ab"},
        7: {"ab", "ac", "ad", "bc", "bd", "cd"},
        8: set(),
        9: {"bd", "ba", "bc", "da", "dc"},
        10: {"cd", "ca", "cb", "da", "db", "ab"},
        11: {"da", "db", "dc", "ab", "ac", "bc"},
    }
    assert left_out == {"nonsense": 6, "contradiction": 1, "tie": 1 + 6 + 1}

    # The download is the file without what was skipped or replaced, and can be read again.
    with page.expect_download() as download:
        page.get_by_role("link", name="Export", exact=True).click()
    path = server.folder / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "ada.jsonl"
    again = labels.read_foreign(path, "ada", "")
    assert again.refused == []
    assert {(each.prompt, each.ranks) for each in again.labels} == {
        (each.prompt, each.ranks) for each in found.rankings if each.labeler == "ada"
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_used_without_a_mouse(visit: Any, server: Server, scheme: str) -> None:
    page = visit(server, "ada", scheme)
    press(page, 1, "a>b/d")
    page.get_by_text("1 more to place").wait_for()
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("n")
    page.get_by_text("Which answer is nonsense?").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Slash")
    page.get_by_role("heading", name="Keys").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="Keys").wait_for(state="hidden")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("Skip"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")  # presses the button, and saves nothing
    saved(page, 1)
    assert server.lines("ada")[0]["skipped"] is True
    for width in (360, 768, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


def test_a_name_that_is_none_is_asked_for_again_and_the_browser_remembers_the_last(visit: Any, server: Server) -> None:
    page = visit(server, "ada")
    page.goto(f"{server.url}/as/..%2F..%2Fetc")
    assert "Not Found" in page.inner_text("body") or page.get_by_label("Your name").count()
    page.goto(f"{server.url}/as/a.b")
    page.get_by_label("Your name").wait_for()
    page.wait_for_function("document.querySelector('input').value === 'ada'")
    page.get_by_label("Your name").fill("../ada")
    page.keyboard.press("Enter")
    page.get_by_text("letters a-z").wait_for()
    assert not [*server.folder.rglob("*.jsonl")][1:]


@pytest.mark.parametrize("how", ["key", "click"])
def test_a_name_arrives_with_the_key_or_the_click_that_ends_it(browser: Any, server: Server, how: str) -> None:
    """Until the page is connected its messages wait, and may change places."""
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    held: list[tuple[Any, str]] = []
    passed: list[str] = []

    def the_first_one_last(route: Any) -> None:
        socket = route.connect_to_server()

        def forward(message: str) -> None:
            if '["event"' not in message:
                socket.send(message)
            elif not held and not passed:
                held.append((socket, message))
            else:
                socket.send(message)
                passed.append(message)

        route.on_message(forward)

    page.route_web_socket(re.compile("."), the_first_one_last)
    page.goto(server.url)
    page.get_by_label("Your name").fill("ada")
    if how == "key":
        page.keyboard.press("Enter")
    else:
        page.get_by_role("button", name="Start").click()
    page.wait_for_timeout(1000)
    # Whichever of the two was the first: it comes second now, or alone.
    for socket, message in held:
        assert '"ada"' in message.replace("\\", "")
        socket.send(message)
    page.get_by_text(re.compile(r"^Prompt 1 of")).wait_for()
    assert held
    context.close()


def test_only_this_machine_by_its_own_name(server: Server) -> None:
    stranger = urllib.request.Request(server.url, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(stranger, timeout=10)
    assert error.value.code == 400
    error.value.close()
    taken = subprocess.Popen(
        [sys.executable, "-m", "tunemill.labelling", "--port", str(server.port), "--completions", "completions.jsonl"],
        cwd=server.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert taken.stdout is not None
        told = re.search(r"http://127\.0\.0\.1:(\d+)", taken.stdout.readline())
        assert told is not None and int(told[1]) != server.port
        assert servers.fetch(told[0]) is not None
    finally:
        taken.send_signal(signal.SIGINT)
        assert taken.wait(timeout=20) == 0
        taken.stdout.close()


def test_a_file_that_somebody_broke_is_named_on_the_page(visit: Any, server: Server) -> None:
    page = visit(server, "ada")
    (server.folder / "labels").mkdir()
    (server.folder / "labels/ada.jsonl").write_text('{"id": "012\n')
    page.reload()
    page.get_by_text("labels/ada.jsonl:1: broken line").wait_for()
    (server.folder / "labels/ada.jsonl").unlink()
    page.reload()
    arrive(page, 1)


def test_what_cannot_be_written_is_not_called_saved(visit: Any, server: Server) -> None:
    page = visit(server, "ada")
    (server.folder / "labels").write_text("a file where the folder should be")
    press(page, 1, ADA[0])
    page.keyboard.press("Enter")
    page.get_by_text("NOT saved: ").wait_for()
    (server.folder / "labels").unlink()
    page.keyboard.press("Enter")
    saved(page, 1)
    assert json.loads((server.folder / "labels/ada.jsonl").read_text())["ranks"] == [1, 2, 1, None]
