"""Raw text as training pairs: nothing is lost, nothing is invented."""

from __future__ import annotations

import pytest

from tunemill import pretraining
from tunemill.losses import Encoded

MARKS = list(range(900, 1000))


def test_causal_blocks_are_the_stream_cut_up() -> None:
    blocks = pretraining.causal_blocks([[1, 2, 3], [4, 5], [6]], 0, 4)
    assert blocks == [Encoded([1], [2, 3, 0]), Encoded([4], [5, 0, 6])]  # a lone end token at the end is no block
    assert pretraining.causal_blocks([[1, 2, 3], [4, 5]], 0, 5) == [Encoded([1], [2, 3, 0, 4]), Encoded([5], [0])]


def test_span_corruption_as_the_paper_shows_it() -> None:
    # Raffel et al. 2020, figure 2: "Thank you <X> me to your party <Y>" / "<X> for inviting <Y> last <Z>", up to "last".
    found = [pretraining.corrupt(range(10), MARKS, 99, 0.3, 1.5, str(seed)) for seed in range(200)]
    wanted = Encoded([0, 1, 900, 4, 5, 6, 7, 8, 901, 99], [900, 2, 3, 901, 9, 902, 99])
    assert wanted in found


@pytest.mark.parametrize("length", [8, 31, 200])
def test_prompt_and_completion_together_are_the_text(length: int) -> None:
    tokens = [token % 800 + 1 for token in range(7, 7 + length)]
    found = pretraining.corrupt(tokens, MARKS, 0, 0.15, 3.0, "a")
    taken: dict[int, list[int]] = {}
    for token in found.completion[:-1]:
        if token in MARKS:
            taken[token] = []
        else:
            taken[next(reversed(taken))].append(token)
    whole: list[int] = []
    for token in found.prompt[:-1]:
        whole += taken.get(token, [token])
    assert whole == tokens
    assert sum(map(len, taken.values())) == max(1, round(0.15 * length))
    assert found == pretraining.corrupt(tokens, MARKS, 0, 0.15, 3.0, "a")


def test_what_cannot_be_corrupted_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        pretraining.corrupt([1, 2], MARKS, 0, 0.8, 1.0, "a")
    with pytest.raises(ValueError, match="sentinels"):
        pretraining.corrupt(list(range(100)), MARKS[:3], 0, 0.5, 1.0, "a")


def test_pieces_leave_out_crumbs() -> None:
    assert list(pretraining.pieces([[1] * 20, [2] * 3], 9, least=4)) == [[1] * 9, [1] * 9]
