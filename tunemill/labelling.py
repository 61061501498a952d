"""The page on which people rank answers, on this machine only (make label).

    python -m tunemill.labelling --completions artifacts/feedback/completions.jsonl --labels labels

All answers to a prompt are shown at once and put in order, ties allowed (Ouyang et al. 2022, figure 12). They stand in an order that
says nothing, another one for each person. What somebody says is in `labels/<name>.jsonl` (`labels.py`), flushed to the disk, before
the page says "saved". A ranking that is half made is kept by the browser, under the page's address.

Texts of prompts and models are put on the page as text: none of it is read as HTML or Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from tunemill import labels, placing
from tunemill.errors import UserError
from tunemill.labels import Label
from tunemill.placing import Progress, Standing, Step
from tunemill.records import Completions

T = TypeVar("T")

PORT = 8800
KEYS = 9
"""Answers that have a digit as their key; more of them are ranked by mouse."""

WARNING = "Prompts and answers may be offensive, harmful or false. They are shown as they are; take a break when you need one."

HELP = (
    (("1", "…", "9"), "the next best answer; again to take it back"),
    (("Shift", "1…9"), "as good as the one ranked last"),
    (("N", "1…9"), "nonsense: no answer at all, or none to this prompt (X does the same)"),
    (("Backspace",), "undo the last step"),
    (("Enter",), "save, and go on to the next prompt without an answer"),
    (("S",), "skip this prompt"),
    (("B",), "back to the previous prompt, to look or to correct"),
    (("?",), "this list"),
)


def _words(tag: str, text: str) -> Any:
    """An element with words in it that are text, whatever they look like."""
    from nicegui.elements.mixins.text_element import TextElement

    return TextElement(tag=tag, text=text)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _by_model(own: Mapping[str, Label]) -> bool:
    return any(each.ranked_by == "model" for each in own.values())


class Desk:
    """What all pages of one server share.

    Args:
        items: the prompts and answers.
        folder: of the labels.
        criterion: what to rank by.
    """

    def __init__(self, items: Sequence[Completions], folder: Path, criterion: str) -> None:
        self.items, self.folder, self.criterion = items, folder, criterion
        self._said: dict[str, dict[str, Label]] = {}

    def said_by(self, labeler: str, *, fresh: bool = False) -> dict[str, Label]:
        """What a person said, by id; one dictionary for all pages of that person, read from the disk where it is `fresh`."""
        own = self._said.setdefault(labeler, {})
        if fresh or not own:
            found = labels.read_own(self.folder, labeler, self.items).said[labeler]
            own.clear()
            own.update(found)
        return own

    def save(self, labeler: str, item: Completions, found: tuple[float | None, ...] | None) -> None:
        """Keep what somebody said; it is on disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        label = Label(item.id, item.prompt, item.completions, found, labeler, self.criterion)
        labels.append(self.folder, [label])
        self.said_by(labeler)[item.id] = label

    def people(self) -> dict[str, Progress]:
        """Who has said something, and how far they are; models are no people."""
        found = labels.read(self.folder, self.items).said
        return {name: placing.progress(self.items, own) for name, own in found.items() if not _by_model(own)}

    def export(self, labeler: str) -> str:
        """A person's rankings as JSON Lines."""
        own = labels.read_own(self.folder, labeler).said[labeler].values()
        return "".join(f"{labels.line_of(each)}\n" for each in own if each.ranks is not None)


UNDERSTOOD, NAMED = "understood", "name"
"""What a browser keeps besides drafts (`labeler/id`): that the warning was read, and who reads here."""


async def _kept() -> dict[str, str]:
    """What this browser keeps; nothing where it does not let pages keep anything."""
    from nicegui import ui

    try:
        found: dict[str, str] = await ui.run_javascript("return drafts.read()", timeout=10.0)
    except TimeoutError:
        return {}
    return found


def _keep(name: str, text: str) -> None:
    """Let this browser keep something; forget it where the text is empty."""
    from nicegui import ui

    ui.run_javascript(f"drafts.keep({json.dumps(name)}, {json.dumps(text)})")


class _Box(NamedTuple):
    """What of an answer on the page changes."""

    box: Any
    place: Any
    rank: Any
    tie: Any
    bad: Any


class Page:
    """One page of one person in one browser: what is on it, and what a key or a click does."""

    def __init__(self, desk: Desk, labeler: str) -> None:
        self.desk, self.labeler = desk, labeler
        self.said = desk.said_by(labeler, fresh=True)
        if _by_model(self.said):
            raise UserError(
                f"'{labeler}' is the name of a model whose rankings were imported", fix="go back, and take another name"
            )
        self.drafts: dict[str, list[Step]] = {}
        first = placing.next_open(desk.items, self.said)
        self.at = len(desk.items) if first is None else first
        """Which prompt; one past the last where all have been answered."""
        self.cards: list[str] = []
        self.boxes: list[_Box] = []
        self.steps: list[Step] = []
        self.ready = False
        """Whether the browser has told what it kept; nothing is done before."""
        self.marking = False
        """Whether the next digit marks nonsense."""

    @property
    def item(self) -> Completions | None:
        """The prompt on the page; None at the end."""
        return self.desk.items[self.at] if self.at < len(self.desk.items) else None

    # What is drawn once.

    def draw(self) -> None:
        """Put everything on the page."""
        from nicegui import ui

        with ui.element("header").classes("top"):
            with ui.element("div").classes("wrap"):
                ui.label("Rank answers").classes("brand")
                self.told_progress = ui.label().classes("progress soft")
                ui.element("div").classes("spread")
                ui.label(self.labeler).classes("soft")
                ui.link("change", "/").classes("plain small")
                ui.link("Export", f"/export/{self.labeler}.jsonl").classes("plain small").props("download")
                self._button("Keys", "?", "help").classes("slim")
            with ui.element("div").classes("bar").props("aria-hidden=true"):
                self.done = ui.element("div").classes("done")
                self.passed = ui.element("div").classes("passed")
        with ui.element("main").classes("wrap asked"):
            self.warning = ui.element("div").classes("warning")
            self.warning.set_visibility(False)
            with self.warning:
                ui.label(WARNING)
                ui.element("div").classes("spread")
                ui.button("Understood", color=None, on_click=self._understood).props("flat no-caps").classes(
                    "action slim"
                )
            self.body = ui.element("div")
        with ui.element("footer").classes("bottom"), ui.element("div").classes("wrap"):
            self.notice = ui.label().classes("said").props("role=status")
            self.buttons = [
                self._button("Back", "B", "back"),
                self._button("Undo", "Backspace", "undo"),
                self._button("Skip", "S", "skip"),
            ]
            self.order = ui.label().classes("order")
            ui.element("div").classes("spread")
            self.buttons.append(self._button("Save and go on", "Enter", "save").classes("main"))
        with ui.dialog() as self.help, ui.card().classes("help"):
            _words("h2", "Keys")
            with ui.element("dl"):
                for keys, meaning in HELP:
                    with ui.element("dt"):
                        for each in keys:
                            self._key(each)
                    with ui.element("dd"):
                        ui.label(meaning)
            ui.button("Close", color=None, on_click=self.help.close).props("flat no-caps").classes("action")
        ui.on("told", lambda event: self.do(event.args["name"], event.args["card"]))

    def _button(self, text: str, key: str, name: str) -> Any:
        from nicegui import ui

        with (
            ui.button(text, color=None, on_click=lambda: self.do(name, None))
            .props("flat no-caps")
            .classes("action") as button
        ):
            self._key(key)
        return button

    @staticmethod
    def _key(text: str) -> None:
        _words("kbd", text).props("aria-hidden=true")

    async def restore(self) -> None:
        """Ask the browser for what it kept, and show the first prompt."""
        kept = await _kept()
        for each in self.desk.items:
            if text := kept.get(f"{self.labeler}/{each.id}"):
                self.drafts[each.id] = placing.read_draft(text, len(set(each.completions)))
        self.warning.set_visibility(UNDERSTOOD not in kept)
        self.ready = True
        self.turn(self.at)

    def _understood(self) -> None:
        self.warning.set_visibility(False)
        _keep(UNDERSTOOD, "yes")

    # What changes.

    def turn(self, at: int) -> None:
        """Show another prompt, or the end."""
        from nicegui import ui

        self.at, self.marking = at, False
        item, told = self.item, placing.progress(self.desk.items, self.said)
        self.told_progress.set_text(str(told))
        self.done.style(f"width: {100 * told.ranked / told.total}%")
        self.passed.style(f"width: {100 * told.skipped / told.total}%")
        self.body.clear()
        with self.body:
            if item is None:
                self.cards, self.boxes, self.steps = [], [], []
                self._draw_end(told)
            else:
                self.cards = placing.shown(self.labeler, item)
                label = self.said.get(item.id)
                self.steps = self.drafts.get(item.id, [] if label is None else placing.steps_of(label, self.cards))
                _words("p", self.desk.criterion).classes("criterion")
                with ui.element("section").classes("prompt"):
                    with ui.element("div").classes("eyebrow"):
                        ui.label(f"Prompt {at + 1} of {told.total}")
                        self.state = ui.label().classes("state")
                    ui.label(item.prompt).classes("text")
                with ui.element("section").classes("answers"):
                    self.boxes = [self._draw_card(number, text) for number, text in enumerate(self.cards)]
        self.buttons[0].set_enabled(at > 0)
        for each in self.buttons[1:]:
            each.set_enabled(item is not None)
        self.refresh()
        ui.run_javascript("scrollTo(0, 0)")

    def _draw_end(self, told: Progress) -> None:
        from nicegui import ui

        with ui.element("section").classes("sheet"):
            _words("h1", "That was the last one. Thank you!")
            rest = f"; {told.skipped} skipped" if told.skipped else ""
            ui.label(f"You ranked {told.ranked} of {told.total} prompts{rest}. Everything is saved.").classes("soft")
            with ui.element("div").classes("row-of others"):
                if told.skipped:
                    ui.button("Look at a skipped one", color=None, on_click=self._to_skipped).props(
                        "flat no-caps"
                    ).classes("action")
                ui.link("Export your rankings", f"/export/{self.labeler}.jsonl").classes("plain").props("download")

    def _to_skipped(self) -> None:
        self.turn(
            next(
                at
                for at, each in enumerate(self.desk.items)
                if each.id in self.said and self.said[each.id].ranks is None
            )
        )

    def _draw_card(self, number: int, text: str) -> _Box:
        from nicegui import ui

        with ui.element("article").classes("answer").props(f"data-card={number}") as box:
            with ui.element("div").classes("head"):
                if number < KEYS:
                    self._key(str(number + 1))
                place = ui.label().classes("place")
                ui.element("div").classes("spread")
                rank = ui.button("", color=None, on_click=lambda: self.do("next", number))
                tie = ui.button("Tie", color=None, on_click=lambda: self.do("tie", number))
                bad = ui.button("Nonsense", color=None, on_click=lambda: self.do("mark", number))
                for button, meaning in (
                    (rank, f"answer {number + 1}"),
                    (tie, f"answer {number + 1} is as good as the one ranked last"),
                    (bad, f"answer {number + 1} is nonsense"),
                ):
                    button.props(f'flat no-caps title="{meaning}"').classes("action slim")
            ui.label(text if text.strip() else "(an empty answer)").classes("text" if text.strip() else "text blank")
        return _Box(box, place, rank, tie, bad)

    def refresh(self, notice: str = "", mood: Literal["", "asks", "fails"] = "") -> None:
        """Show where the cards stand, and say something."""
        found = placing.standing(self.steps)
        places = {card: number for number, tied in enumerate(found.places, start=1) for card in tied}
        for card, each in enumerate(self.boxes):
            place = places.get(card)
            marked = card in found.nonsense
            each.box.classes(remove="placed bad", add="placed" if place else "bad" if marked else "")
            if place:
                tied = ", tied" if len(found.places[place - 1]) > 1 else ""
                each.place.set_text(_ordinal(place) + tied)
            else:
                each.place.set_text("nonsense" if marked else "no place yet")
            each.rank.set_text("Take back" if place else f"Rank {_ordinal(len(found.places) + 1)}")
            each.tie.set_visibility(bool(found.places))
            each.bad.set_text("Take back" if marked else "Nonsense")
        if self.item is not None:
            label = self.said.get(self.item.id)
            if label is None:
                self.state.set_text("")
            elif label.ranks == placing.ranks(self.item, self.cards, self.steps):
                self.state.set_text("skipped" if label.ranks is None else "saved")
            else:
                self.state.set_text("changed since it was saved")
        self.order.set_text(placing.in_words(self.steps))
        if self.marking:
            notice, mood = "Which answer is nonsense? Press its number; Esc if none.", "asks"
        self.notice.set_text(notice or self._hint(found))
        self.notice.classes(remove="asks fails", add=mood)

    def _hint(self, found: Standing) -> str:
        """What there is to do, where there is nothing else to say."""
        if self.item is None:
            return ""
        if not self.steps:
            return "Press the answers' numbers from best to worst, or click on them."
        left = len(self.cards) - sum(map(len, found.places)) - len(found.nonsense)
        return f"{left} more to place." if left else "All placed: Enter saves."

    # What people do.

    def do(self, name: str, card: int | None) -> None:
        """What a key, a click or a button asks for; what makes no sense here does nothing."""
        if not self.ready:
            return
        if name == "help":
            self.help.open()
            return
        if name == "escape":
            self.marking = False
            self.refresh()
            return
        if self.help.value:
            return
        if name == "back":
            if self.at > 0:
                self.turn(self.at - 1)
            return
        item = self.item
        if item is None:
            return
        match name:
            case "next" | "tie" | "mark" if card is not None and card < len(self.cards):
                kind: Literal["next", "tie", "nonsense"] = (
                    "nonsense" if self.marking or name == "mark" else "tie" if name == "tie" else "next"
                )
                self._change(item, [*self.steps, Step(kind, card)])
            case "nonsense":
                self.marking = True
                self.refresh()
            case "undo":
                if self.marking:
                    self.marking = False
                    self.refresh()
                else:
                    self._change(item, self.steps[:-1])
            case "skip":
                self._save(item, None)
            case "save":
                found = placing.ranks(item, self.cards, self.steps)
                if found is None:
                    there = placing.standing(self.steps)
                    left = len(self.cards) - sum(map(len, there.places)) - len(there.nonsense)
                    told = "1 answer has" if left == 1 else f"{left} answers have"
                    self.refresh(f"Not saved: {told} no place yet. S skips the prompt.", "asks")
                else:
                    self._save(item, found)

    def _change(self, item: Completions, steps: list[Step]) -> None:
        self.steps, self.marking = steps, False
        self.drafts[item.id] = steps
        _keep(f"{self.labeler}/{item.id}", json.dumps(steps))
        self.refresh()

    def _save(self, item: Completions, found: tuple[float | None, ...] | None) -> None:
        before = self.said.get(item.id)
        number, told = self.at + 1, "skipped" if found is None else placing.in_words(self.steps)
        if before is None or before.ranks != found:
            try:
                self.desk.save(self.labeler, item, found)
            except OSError as error:
                self.refresh(f"NOT saved: {error.strerror or error}. Try again; nothing is lost.", "fails")
                return
        self.drafts.pop(item.id, None)
        _keep(f"{self.labeler}/{item.id}", "")
        following = placing.next_open(self.desk.items, self.said, self.at)
        self.turn(len(self.desk.items) if following is None else following)
        self.refresh(f"Saved: prompt {number}, {told}")


def serve(desk: Desk, port: int) -> None:
    """Answer on 127.0.0.1 until told to stop."""
    from fastapi import Response
    from nicegui import app, ui
    from nicegui.events import GenericEventArguments
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    here = Path(__file__)
    script, style = (here.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".js", ".css"))

    def dress() -> None:
        ui.add_css(style)
        ui.add_body_html(f"<script>{script}</script>")

    def or_say_why(draw: Callable[[], T]) -> T | None:
        """What `draw` returns; or the mistake in a file that keeps the page from being drawn."""
        try:
            return draw()
        except UserError as error:
            with ui.element("main").classes("wrap"), ui.element("section").classes("sheet"):
                _words("h1", "This page cannot be shown yet")
                ui.label(str(error)).classes("text")
            return None

    def ask_name() -> None:
        with ui.element("main").classes("wrap"), ui.element("section").classes("sheet"):
            _words("h1", "Rank answers")
            ui.label(
                f"{len(desk.items)} prompts, each with several answers: put the answers in order, the best one first. "
                "What you say is kept in a plain file on this machine."
            ).classes("soft")
            with ui.element("div").classes("warning"):
                ui.label(WARNING)

            def start(event: GenericEventArguments) -> None:
                try:
                    name = labels.check_name(event.args or "")
                except UserError as error:
                    field.props(f'error error-message="{error.expected}"')
                    return
                _keep(NAMED, name)
                _keep(UNDERSTOOD, "yes")
                ui.navigate.to(f"/as/{name}")

            with ui.element("div").classes("row-of"):
                field = ui.input("Your name").props("outlined autofocus autocomplete=off").classes("name")
                # The name comes with the key or the click. What a field says of itself comes by another message, and until a slow
                # machine has connected the page, either of the two may be the first.
                typed = "() => emit(document.querySelector('.name input').value)"
                field.on("keydown.enter", start, js_handler=typed)
                button = ui.button("Start", color=None).props("flat no-caps").classes("action main")
                button.on("click", start, js_handler=typed)
            for name, told in desk.people().items():
                with ui.element("div").classes("others small soft"):
                    ui.link(name, f"/as/{name}").classes("plain")
                    _words("span", f" · {told}")

        async def remembered() -> None:
            await ui.context.client.connected()
            name = (await _kept()).get(NAMED)
            if name and not field.value:
                field.set_value(name)

        ui.timer(0, remembered, once=True)

    @ui.page("/", title="Rank answers")
    def _start() -> None:
        dress()
        or_say_why(ask_name)

    @ui.page("/as/{labeler}", title="Rank answers")
    async def _rank(labeler: str) -> None:
        dress()
        try:
            name = labels.check_name(labeler)
        except UserError:
            or_say_why(ask_name)
            return
        page = or_say_why(lambda: Page(desk, name))
        if page is None:
            return
        page.draw()
        await ui.context.client.connected()
        await page.restore()

    @app.get("/export/{labeler}.jsonl")
    def _export(labeler: str) -> Response:
        try:
            name = labels.check_name(labeler)
            content = desk.export(name)
        except UserError as error:
            return Response(str(error), status_code=404, media_type="text/plain")
        return Response(
            content,
            media_type="application/x-ndjson",
            headers={"Content-Disposition": f'attachment; filename="{name}.jsonl"'},
        )

    # A page elsewhere must not be able to read what is here by giving this address a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    async def announce() -> None:
        # What is started first listens last.
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        print(f"rank answers at http://127.0.0.1:{port}")
        print(f"what is saved is in {desk.folder}/; Ctrl-C ends this", flush=True)

    app.on_startup(announce)
    ui.run(
        host="127.0.0.1",
        port=port,
        title="Rank answers",
        dark=None,
        language="en-US",
        show=False,
        reload=False,
        tailwind=False,
        show_welcome_message=False,
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tunemill.labelling", description="A page on 127.0.0.1 on which people rank answers."
    )
    parser.add_argument(
        "--completions",
        type=Path,
        default=Path("artifacts/feedback/completions.jsonl"),
        metavar="FILE",
        help="prompts and their answers (artifacts/feedback/completions.jsonl)",
    )
    parser.add_argument("--labels", type=Path, default=Path("labels"), metavar="FOLDER", help="the labels (labels)")
    parser.add_argument("--criterion", default=labels.CRITERION, metavar="TEXT", help="what to rank by")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"the usual one is {PORT}; any free one where it is taken"
    )
    told = parser.parse_args()
    try:
        items = labels.to_rank(told.completions)
        for each in labels.read(told.labels, items).refused:
            print(f"left out: {told.labels / each.source}:{each.line}: {each.detail}: {labels.REASONS[each.reason]}")
        from tunemill.servers import free_port

        serve(Desk(items, told.labels, told.criterion), free_port(told.port))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0  # how it is meant to end
    return 0


if __name__ == "__main__":
    sys.exit(main())
