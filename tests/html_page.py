"""A page's tags, words and tables, read as a browser would read them but for the layout."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Every tag with its attributes, the text outside `<style>` and `<script>`, its tables, and whether all tags close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        """What the box around a table is called → its rows, the head's too → the words of each cell."""
        self.drawn: dict[str, list[str]] = {}
        """Class of an SVG `<text>`, or "title" → the words of each, in order."""
        self._region = ""
        self._shape = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.append((tag, told))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if told.get("role") == "region":
            self._region = told.get("aria-label") or ""
        if tag == "tr":
            self.tables.setdefault(self._region, []).append([])
        elif tag in ("th", "td"):
            self.tables[self._region][-1].append("")
        if tag in ("text", "title"):
            self._shape = "title" if tag == "title" else told.get("class") or ""
            self.drawn.setdefault(self._shape, []).append("")
        if tag not in ("meta", "br", "wbr", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "table":
            self._region = ""

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.text.append(data)
        words = " ".join(data.split())
        if words and self.open[-1:] in (["text"], ["title"]):
            self.drawn[self._shape][-1] += words
        elif words and "tr" in self.open and {"th", "td"} & set(self.open):
            row = self.tables[self._region][-1]
            row[-1] = f"{row[-1]} {words}".strip()

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())
