"""A network that says whether the last word is odd, and pairs of prompts for it."""

import torch
from tiny_subject import START, tiny_llama
from word_world import Words

from unweave.subject import Subject, wrap_module
from unweave.subject.tokenizer import Tokenizer
from unweave.validate.interventions.interchange import Counterfactual
from unweave.validate.interventions.pairs import Pair

D, SITE = 32, "blocks.1.resid_post"
ODD, EVEN = 41, 40


def parity_network() -> Subject:
    """Says whether the last token is odd, in coordinate 0; all the rest of the stream is noise
    that differs by token and that the answer takes no notice of.
    """
    model = tiny_llama().model
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        table = model.model.embed_tokens.weight
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
        table[:, 0] = (torch.arange(len(table)) % 2 * 2.0 - 1) * 4
        model.lm_head.weight.zero_()
        model.lm_head.weight[ODD, 0], model.lm_head.weight[EVEN, 0] = 3.0, -3.0
    return wrap_module(model, name="parity", tokenizer=Tokenizer(Words()))


def answer(token: int) -> int:
    """What it says."""
    return ODD if token % 2 else EVEN


def drawn(count: int, *, seed: int = 0, differ: bool = False) -> list[tuple[int, int]]:
    """Last tokens of base and source; with `differ`, one of them is odd."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 40, (count, 2), generator=random)
    if differ:
        tokens[:, 1] += (tokens.sum(1) + 1) % 2
    return [(base, source) for base, source in tokens.tolist()]


def pairs(count: int = 80, *, seed: int = 0, differ: bool = False) -> list[Counterfactual]:
    """Pairs as the network reads them."""
    return [
        Counterfactual((START, 5, b), (START, 6, s), 2, 2, answer(b), answer(s), answer(s))
        for b, s in drawn(count, seed=seed, differ=differ)
    ]


def pairs_in_words(count: int = 80) -> list[Pair]:
    """The same in words, answers differing."""
    return [
        Pair(
            base=f"w5 w{b}", source=f"w6 w{s}", base_answer=f"w{answer(b)}",
            source_answer=f"w{answer(s)}", expected=f"w{answer(s)}", base_at=f"w{b}",
        )
        for b, s in drawn(count, differ=True)
    ]  # fmt: skip
