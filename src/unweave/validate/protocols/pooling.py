"""Mean activations and mean latents of texts, as SAEBench's probes see them.

A text is cut to the context; the start token goes before it and counts in no mean. Latents are in
units of what they write (decoder rows of norm one), as the published protocol has them.

Published runs pad every text to the context with vectors of zero, and where latents are taken out
of the site, what the encoder makes of zero is taken out once for every such place (sae-bench
0.6.0, `ablated_precomputed_activations`). `padded` follows that: it matters for short texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError
from unweave.progress import Advance
from unweave.subject import Subject
from unweave.validate.placed import Placed

BATCH = 32
"""Texts run together; no number depends on it."""


class Pooled(NamedTuple):
    """Texts as means over their tokens."""

    site: Float[Tensor, "texts d_out"]
    """Of what stands at the sites written."""
    latents: Float[Tensor, "texts latents"]
    """Of the latents."""
    written: Float[Tensor, "texts latents"]
    """The same times the length of what they write in each row: other than `latents` only where a
    layer norm stands before the dictionary."""
    at_zero: Float[Tensor, " latents"]
    """What the encoder makes of a vector of zeros."""
    padding: Float[Tensor, " texts"]
    """Padded places over tokens of each text; zero where padding does not count."""

    def rows(self, which: Int[Tensor, " some"]) -> "Pooled":
        """Some of the texts."""
        latents = self.latents[which]
        written = latents if self.written is self.latents else self.written[which]
        return Pooled(self.site[which], latents, written, self.at_zero, self.padding[which])

    def without(
        self, which: Int[Tensor, " some"], unit: Float[Tensor, "latents d_out"]
    ) -> Float[Tensor, "texts d_out"]:
        """The site's means with some latents taken out and the error kept."""
        gone = self.written[:, which] + self.padding[:, None] * self.at_zero[which]
        return self.site - gone @ unit[which]


def unit_directions(coder: Coder) -> Float[Tensor, "latents d_out"]:
    """What latents write, brought to norm one; in main memory, as `pool` gives the rest."""
    return torch.nn.functional.normalize(coder.directions().float().cpu(), dim=1)


@torch.no_grad()
def pool(
    subject: Subject,
    coders: Sequence[Placed],
    texts: Sequence[str],
    *,
    context: int = 128,
    padded: bool = True,
    advance: Advance = lambda amount: None,
) -> list[Pooled]:
    """Means of every text for every coder, in one pass of the subject; all stand at one place.

    Raises:
        UserError: a subject without tokenizer or start token, or a text without a token.
    """
    rows = tokenised(subject, texts, context)
    sites = list(dict.fromkeys(s for one in coders for s in (*one.reads, *one.writes)))
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    parts: list[list[Pooled]] = []
    for start in range(0, len(order), BATCH):
        group = [rows[at] for at in order[start : start + BATCH]]
        ids, real = _padded(group)
        found = subject.run(ids, capture=sites, logits=False).sites
        flat = {site: found[site].flatten(2)[real].float() for site in sites}
        text = real.nonzero()[:, 0]
        parts.append([_pooled(one, flat, text, len(group), context * padded) for one in coders])
        advance(len(group))
    back = torch.tensor(order).argsort()
    return [_joined([part[i] for part in parts]).rows(back) for i in range(len(coders))]


def tokenised(subject: Subject, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of each text behind the start token, cut to the context."""
    start, tokenizer = subject.start_token, subject.tokenizer
    if tokenizer is None or start is None:
        raise UserError(
            f"{subject.name} has no tokenizer or no start token, so no text can be given to it"
        )
    context = min(context, subject.context)
    rows = [[start, *ids[: context - 1]] for ids in tokenizer.encode_many(texts)]
    empty = next((place for place, row in enumerate(rows) if len(row) < 2), None)
    if empty is not None:
        raise UserError(f"The text {texts[empty]!r} has no token for {subject.name}")
    return rows


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids with padding on the right, where nothing looks, and which are the text's own."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    place = torch.arange(width)
    return ids, (place[None] < lengths[:, None]) & (place > 0)


def _pooled(
    one: Placed, flat: dict[str, Tensor], text: Tensor, texts: int, padded_to: int
) -> Pooled:
    x, y = (torch.cat([flat[site] for site in side], 1) for side in (one.reads, one.writes))
    text = text.to(x.device)
    tokens = torch.bincount(text, minlength=texts).float()
    length = one.coder.directions().float().norm(dim=1)
    code, zero = one.coder.encode(x), one.coder.encode(x.new_zeros(1, x.shape[1]))
    value = code.value.float() * length[code.support.latent]
    latents = _means(value, code, text, tokens)
    size = _row_sizes(one.coder, x)
    written = (
        latents if size is None else _means(value * size[code.support.row], code, text, tokens)
    )
    at_zero = zero.dense()[0].float() * length * (1.0 if size is None else 0.0)
    site = x.new_zeros(texts, y.shape[1]).index_add_(0, text, y) / tokens[:, None]
    # A place that holds the start token is padding too in the published count of places.
    padding = (padded_to - tokens).clamp_min(0) / tokens * (padded_to > 0)
    return Pooled(site, latents, written, at_zero, padding)


def _means(value: Tensor, code: SparseCode, text: Tensor, tokens: Tensor) -> Tensor:
    place = text[code.support.row] * code.n_latents + code.support.latent
    out = value.new_zeros(len(tokens) * code.n_latents).index_add_(0, place, value)
    return out.view(len(tokens), -1) / tokens[:, None]


def _row_sizes(coder: Coder, x: Tensor) -> Tensor | None:
    """What a layer norm before the dictionary divides each row by, in the units of its input."""
    if not isinstance(coder, Dictionary) or not coder.spec.layer_norm:
        return None
    scaled = x.to(coder.W_dec.dtype) * coder.input_scale
    return (scaled - scaled.mean(1, keepdim=True)).square().mean(1).sqrt().float() + 1e-5


def _joined(parts: Sequence[Pooled]) -> Pooled:
    """Of many groups of texts; in main memory, where probes are trained."""
    site, latents = (torch.cat([part[i].cpu() for part in parts]) for i in (0, 1))
    same = all(part.written is part.latents for part in parts)
    written = latents if same else torch.cat([part.written.cpu() for part in parts])
    padding = torch.cat([part.padding.cpu() for part in parts])
    return Pooled(site, latents, written, parts[0].at_zero.cpu(), padding)
