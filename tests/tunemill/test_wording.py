"""Values as a person reads them."""

from __future__ import annotations

from tunemill import wording


def test_numbers_read_like_numbers():
    assert [wording.number(value) for value in (None, 0.0, -0.04, -1.25, 12345.6)] == [
        "—",
        "0.0",
        "0.0",
        "−1.2",
        "12,345.6",
    ]
    assert [wording.signed(value) for value in (None, 0.0, -0.04, -1.25, 2.0)] == ["—", "0.0", "0.0", "−1.2", "+2.0"]
    assert [wording.size(value) for value in (None, 512, 2048, 5 * 2**20, 3.5 * 2**30)] == [
        "—",
        "512 B",
        "2 KiB",
        "5 MiB",
        "3.50 GiB",
    ]
    assert [wording.duration(value) for value in (None, 4.25, 59.6, 262.4, 7300)] == [
        "—",
        "4.2 s",
        "1 min 0 s",
        "4 min 22 s",
        "2 h 1 min",
    ]
    assert [wording.tick(value) for value in (0.0, 20000, 0.002, -2.5)] == ["0", "20,000", "0.002", "−2.5"]
    assert [wording.p_value(value) for value in (None, 0.0004, 0.04)] == ["", "p < 0.001", "p = 0.040"]
    assert [wording.plural(1, "family"), wording.plural(2, "family"), wording.plural(2000, "item")] == [
        "1 family",
        "2 families",
        "2,000 items",
    ]


def test_a_number_of_unknown_size_keeps_the_digits_that_say_something():
    assert [wording.brief(value) for value in (None, 0.0, 0.0312, -1.4, 12.34, 1234.5, 8.0)] == [
        "—", "0", "0.0312", "−1.4", "12.3", "1,234", "8",
    ]  # fmt: skip
    assert [wording.brief(value, 2, sign=True) for value in (0.0602, -0.5, 0.0)] == ["+0.06", "−0.5", "0"]


def test_a_share_keeps_the_digits_that_say_something():
    shares = {None: "—", 0: "0%", 0.0002: "<0.001%", 0.00856: "0.0086%", 1.783: "1.8%", 15.04: "15.0%", 100: "100%"}
    assert {percent: wording.share(percent) for percent in shares} == shares


def test_hidden_characters_show():
    assert wording.visible("a\x1b[31mb\x00\u202ec\ud800\x7f") == "a␛[31mb␀�c�␡"
    assert wording.visible("naïve 👩\u200d💻 नि\u200dप\nzwei\tTabs") == "naïve 👩\u200d💻 नि\u200dप\nzwei\tTabs"
    wording.visible("".join(map(chr, range(0x11000)))).encode()  # whatever comes, the page can be written
