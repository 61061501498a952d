"""A tiny random Llama with a tokenizer trained on the spot: the real thing in shape, ready in a second, nothing fetched.

ChatML like the default base model; unlike it, pad and EOS differ in the tokenizer (`<|pad|>`, `<|im_end|>`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Words of the kind the documentation corpus has; every one becomes a token or a few of them.
_VOCABULARY = """
a able about above absolute accept access according action add additional after algorithm all allow along already also
always an and any append apply are argument array as assign at attribute available average axis back base batch be
because been before behavior being below between binary block body boolean both boundary buffer build by cache call
callable callback can cannot case change character check class clean clear close code collection column combine command
common compare complete compute condition config connection contain content context control convert copy correct count
create current custom data dataset date decode default define delete depend describe description device dictionary
different dimension directory disable distribution do document does dtype each edge element else empty enable encode end
entry equal error estimate evaluate event every example except exception execute exist expected expression extra fail
false feature field file filter final find first fit flag float follow for format found frame from full function
generate generator get given global gradient graph group handle has have header helper hook if ignore image implement
import in include index indices infer information initial input insert instance instead integer interface internal into
invalid is it item iterable iterator its join json key keyword kind label last layer length less level library limit
line linear list load local log logger loop loss lower made make manager many map mask match matrix maximum may mean
memory merge message metadata method metric minimum missing mode model module more must name namespace need nested
network new next node none normalize not note null number object of off offset on once one only open operation operator
option optional or order original other otherwise out output over override package padding page pair parallel parameter
parent parse pass path pattern per perform pixel plot point pool position possible precision predict prefix present
previous print probability process project property provide python query queue raise random range rate raw read record
reduce reference register regular relative remove rename repeat replace representation request require reset resolve
resource response result return reverse root rotate row rule run same sample save scalar scale schema scope score search
second section see seed select self send separate sequence serialize server session set shape should show shuffle
signature similar simple single size skip slice some sort source space specified split standard start state statement
static statistic step stop store stream string structure style subclass such sum support switch symbol system table tag
target task template tensor test text than that the their them then there these they this thread three threshold through
time to token tool top total train transform tree true tuple two type under union unique unit unless until update upper
url use user using validate value variable vector version view wait warning was weight well were what when where whether
which while will window with within without word work wrap write yield zero
"""


def corpus(seed: int = 0) -> list[str]:
    """Four hundred sentences made of the words above, the same ones for the same seed."""
    import random

    rng, known = random.Random(seed), _VOCABULARY.split()
    lines = []
    for _ in range(400):
        words = rng.choices(known, k=rng.randint(5, 14))
        lines.append(
            f"{' '.join(words).capitalize()}. {rng.choice(known)}.{rng.choice(known)}({rng.choice(known)}=None)"
        )
    return [*lines, " ".join(known), "Summarize in one line:\n\n", "system user assistant\n"]


def forgetful(vocabulary: int, seed: int = 0) -> Any:
    """A Mistral (2 layers, width 32) that sees sixteen tokens back and no further.

    Args:
        vocabulary: how many tokens it knows.
        seed: of the weights.
    """
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MistralForCausalLM(config).eval()


def build(folder: Path, seed: int = 0) -> None:
    """Write model (4 layers, width 64, float32, 1,024 positions) and tokenizer into `folder`.

    Args:
        folder: made if it is not there.
        seed: of the weights and of the text the tokenizer is trained on.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1536,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(seed), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=START, eos_token=END, pad_token=PAD, model_max_length=1024, padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Wide enough that what is generated depends on the prompt instead of repeating its last token.
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.eval().save_pretrained(folder)
