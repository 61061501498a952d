"""llama.cpp as a runtime: answers and speed of a GGUF file, in this process.

The package `xllamacpp` carries llama.cpp compiled. It answers over HTTP as well, on a port of 127.0.0.1 that nobody is told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunemill.errors import UserError
from tunemill.profiling import Speed
from tunemill.sampling import Generation


class Llama:
    """One GGUF file, loaded."""

    def __init__(self, file: Path, threads: int, context: int, rows: int = 1) -> None:
        """Load it.

        Args:
            file: the GGUF file.
            threads: CPU threads.
            context: most tokens of a conversation, answer included: room is made for so many, in each of the rows.
            rows: conversations at the same time.

        Raises:
            UserError: llama.cpp cannot load the file.
        """
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = context * rows
        params.n_parallel = rows
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.hostnames = ["127.0.0.1"]
        params.verbosity = 0
        if not file.is_file():
            raise UserError(f"{file} is missing", expected="a GGUF file", fix="run the stage that writes it: dvc repro")
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UserError(
                f"llama.cpp cannot load {file.name}: {error}",
                where=str(file),
                expected="a GGUF file of a model that it knows",
                fix="run the stage that writes it again: dvc repro",
            ) from None
        self.file, self.threads, self.context, self.rows = file, threads, context, rows

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        """Greedy answers, one prompt after the other: what comes out depends on nothing else.

        Args:
            prompts: token ids of each.
            max_new_tokens: most tokens to generate for each.
        """
        found = []
        for prompt in prompts:
            told = self._ask(list(prompt), max_new_tokens)
            choice = told["choices"][0]
            text, tokens = str(choice["text"]), int(told["usage"]["completion_tokens"])
            found.append(Generation(text, tokens, choice["finish_reason"] == "stop"))
        return found

    def speed(self, prompts: Sequence[Sequence[int]], steps: int) -> Speed:
        """Measure once, as `tunemill.profiling.speed` does.

        llama.cpp's clock of writing starts with the first token, which reading has given, and counts it: n tokens are n - 1 steps.

        Args:
            prompts: token ids; each is read alone. The first is answered alone, then as often as there are rows at the same time.
            steps: tokens decoded for each, whether or not a text would have ended.
        """
        read = [self._ask(list(prompt), 1, ignore_eos=True)["timings"] for prompt in prompts]
        seconds = sum(each["prompt_ms"] for each in read) / 1e3
        alone = self._ask(list(prompts[0]), steps + 1, ignore_eos=True)["timings"]
        # Of several at the same time only the whole is told: the time of reading them, and of one token each, is taken off.
        together = [list(prompts[0])] * self.rows
        began = time.perf_counter()
        self._ask(together, 1, ignore_eos=True)
        between = time.perf_counter()
        self._ask(together, 1 + steps, ignore_eos=True)
        batch = (time.perf_counter() - between) - (between - began)
        one_by_one = self.rows * alone["predicted_ms"] / 1e3
        return Speed(
            sum(len(prompt) for prompt in prompts) / seconds,
            seconds / len(prompts),
            steps / (alone["predicted_ms"] / 1e3),
            # Rows side by side are no slower than one after the other, nor faster than one alone: what says so was disturbed.
            self.rows * steps / min(max(batch, one_by_one / self.rows), one_by_one),
            None,  # the energy of reading cannot be told from that of writing
        )

    def together(self, prompts: Sequence[Sequence[int]], steps: int) -> None:
        """Answer several prompts at the same time, `steps` tokens each, and forget what was said."""
        self._ask([list(prompt) for prompt in prompts], steps, ignore_eos=True)

    def _ask(self, prompt: Any, count: int, ignore_eos: bool = False) -> dict[str, Any]:
        told = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": count,
                "temperature": 0,
                "cache_prompt": False,  # every prompt is read anew
                "ignore_eos": ignore_eos,
            }
        )
        if "choices" not in told:
            longest = max(len(each) for each in (prompt if isinstance(prompt[0], list) else [prompt]))
            raise UserError(
                f"llama.cpp did not answer a prompt of {longest} tokens: {told.get('message') or told}",
                where=str(self.file),
                expected=f"at most {self.context} tokens, answer included",
                fix="leave longer rows out, or take the GGUF variant out of `variants`",
            )
        return dict(told)
