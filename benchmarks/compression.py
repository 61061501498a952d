"""Compression: bytes, perplexity and speed of the tuned model in every form, and GGUF beside llama.cpp's own conversion.

    python benchmarks/compression.py artifacts/lora/adapter artifacts/select/model artifacts/validate/train.jsonl \
        artifacts/validate/validation.jsonl [--converter vendor/llama.cpp] [--rounds 5] [--items 24] [--forms nf4 …]

All forms stand in one process and take turns (A, B, A, B, …); the first round warms up, and what counts is the ratio to float32 in
transformers within a round (the geometric mean without the extremes). Perplexity is of the validation rows' right answers; a GGUF
file's is of the weights that it expands to. With --compiled torchao's int8 model stands there after torch.compile as well.

The converter is the folder of llama.cpp's source with convert_hf_to_gguf.py, as the source package of llama-cpp-python carries it
(pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36). Its file has to have the same tensors as ours, bit for bit,
or the command fails; so it does where the same tensors are not as fast.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TQDM_DISABLE", "1")


def perplexity(folder: Path, rows: Sequence[Any], runtime: Any) -> float:
    """Of the completions of some encoded rows."""
    from stages.variant import likelihood
    from tunemill import models

    model = models.load_base(folder, runtime)
    found = [likelihood(model, row) for row in rows]
    return math.exp(-sum(logprob for logprob, _ in found) / sum(tokens for _, tokens in found))


GGUF = ("F32", "Q8_0", "Q5_1", "Q4_1", "Q4_0")
WAYS: dict[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "int8-dynamic-smoothed": {"method": "int8-dynamic", "smooth": 0.5},
    "nf4": {"method": "nf4"},
    **{f"gguf-{kind}": {"method": "gguf", "type": kind} for kind in GGUF},
}
"""Name of a form → how `quantize` makes it."""
ALWAYS = ("int8", "gguf-Q8_0")
"""What is compiled, and what is held against llama.cpp's own conversion."""


def made(policy: Path, base: Path, train: Path, place: Path, runtime: Any, forms: Sequence[str]) -> dict[str, Path]:
    """The policy whole and in some of `WAYS`, as the stages write them: name → folder."""
    from stages import quantize
    from tunemill import models
    from tunemill.log import Log
    from tunemill.params import ParamsFile

    whole, tokenizer = models.load_whole(policy, base, runtime, "policy")
    models.save(whole, tokenizer, place / "float32", "float32")
    values = ParamsFile(ROOT / "params.yaml").section("quantize", quantize.Config).model_dump()
    folders = {"float32": place / "float32"}
    for name in forms:
        (work := place / f"work-{name}").mkdir()
        quantize.run(
            quantize.Config.model_validate(values | {"variants": {"one": WAYS[name]}}), candidate="one", policy=place / "float32",
            base=place / "float32", train=train, validation=train, out=place / name, work=work, runtime=runtime, log=Log(),
        )  # fmt: skip
        folders[name] = place / name / "model"
    return folders


def converted(converter: Path, model: Path, out: Path) -> None:
    """llama.cpp's own conversion, to Q8_0."""
    done = subprocess.run(
        [sys.executable, converter / "convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", "q8_0"],
        env={**os.environ, "PYTHONPATH": str(converter / "gguf-py")}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"llama.cpp's own script cannot convert the model:\n{done.stderr.strip()}")


def differing(one: Path, other: Path) -> list[str]:
    """Tensors that two GGUF files do not have alike."""
    import gguf

    files = [{each.name: each for each in gguf.GGUFReader(path).tensors} for path in (one, other)]
    names = sorted(files[0].keys() | files[1].keys())
    return [
        name
        for name in names
        if not all(name in each for each in files)
        or files[0][name].tensor_type != files[1][name].tensor_type
        or files[0][name].data.tobytes() != files[1][name].data.tobytes()
    ]


def main() -> int:
    """Measure, print the table, and fail where the two conversions are not the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("policy", "base", "train", "validation"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--converter", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--forms", nargs="+", choices=WAYS, default=list(WAYS), help="default: all; int8 and gguf-Q8_0 always"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="int8 after torch.compile too, which takes many minutes"
    )
    told = parser.parse_args()

    from tunemill import heldout, llama_cpp, models, records, serving, statistics, tuning
    from tunemill.runtime import Runtime
    from tunemill.stage import quieten

    quieten()
    runtime = Runtime("cpu", "float32", 2)
    with tempfile.TemporaryDirectory() as room:
        place = Path(room)
        forms = [each for each in WAYS if each in (*told.forms, *ALWAYS)]
        folders = made(told.policy, told.base, told.train, place, runtime, forms)
        examples = heldout.subset(records.read(told.validation, records.Example), told.items, 0, "group")
        tokenizer = models.load_tokenizer(folders["float32"])
        rows = [tuning.encode(tokenizer, each.prompt, each.completion) for each in examples]
        sure = {name: perplexity(folder, rows, runtime) for name, folder in folders.items()}
        sizes = {name: models.weight_bytes(folder) for name, folder in folders.items()}
        asked = [each.prompt for each in examples[:2]]
        prompts = [models.render_prompt(tokenizer, prompt) for prompt in asked]

        def load(folder: Path) -> serving.Served:
            return serving.load(folder, folder, runtime, asked, told.steps, len(asked))

        served = {name: load(folder) for name, folder in folders.items()}
        if told.converter:
            converted(told.converter, folders["float32"], place / "peer.gguf")
            apart = differing(folders["gguf-Q8_0"] / "model.gguf", place / "peer.gguf")
            print(f"tensors that differ from llama.cpp's own conversion: {', '.join(apart) or 'none'}")
            ours = served["gguf-Q8_0"].model
            theirs = llama_cpp.Llama(place / "peer.gguf", runtime.threads, ours.context, len(asked))
            served["llama.cpp's Q8_0"] = serving.Served(theirs, tokenizer)
        if told.compiled:
            import torch

            compiled = load(folders["int8"])
            compiled.model.forward = torch.compile(compiled.model.forward, dynamic=True)
            served["int8, compiled"] = compiled
        measured: dict[str, list[Any]] = {name: [] for name in served}
        for turn in range(1 + told.rounds):
            for name, each in served.items():
                found = each.speed(prompts, told.steps)
                if turn:
                    measured[name].append(found)
            print(f"round {turn} of {told.rounds}", file=sys.stderr)

    print("| | MiB | of float32 | perplexity | | prefill | decode | decode tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    ratios: dict[str, float] = {}
    for name, speeds in measured.items():

        def ratio(field: str, speeds: list[Any] = speeds) -> float:
            return statistics.middle(
                [getattr(a, field) / getattr(b, field) for a, b in zip(speeds, measured["float32"], strict=True)]
            )

        size = f"{sizes[name] / 2**20:.0f} | {sizes[name] / sizes['float32']:.3f}x" if name in sizes else " | "
        worth = f"{sure[name]:.2f} | {100 * (sure[name] / sure['float32'] - 1):+.1f}%" if name in sure else " | "
        ratios[name] = ratio("decode_tokens_per_second")
        rate = statistics.middle([each.decode_tokens_per_second for each in speeds])
        print(
            f"| {name} | {size} | {worth} | {ratio('prefill_tokens_per_second'):.2f}x | {ratios[name]:.2f}x | {rate:.1f} |"
        )
    print(json.dumps(ratios))
    if not told.converter:
        return 0
    beside = statistics.middle(
        [
            a.decode_tokens_per_second / b.decode_tokens_per_second
            for a, b in zip(measured["gguf-Q8_0"], measured["llama.cpp's Q8_0"], strict=True)
        ]
    )
    print(f"decode of our Q8_0 beside llama.cpp's own: {beside:.2f}x")
    return 1 if apart or beside < 0.9 else 0


if __name__ == "__main__":
    sys.exit(main())
