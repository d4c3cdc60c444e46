"""A dictionary grown out of a smaller one: the latents it has, and new ones for what it misses."""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError


@torch.no_grad()
def grow(
    dictionary: Dictionary,
    n_latents: int,
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "rows d_out"] | None = None,
    *,
    height: float = 0.5,
    seed: int = 0,
) -> Dictionary:
    """A wider dictionary that begins as this one does; train it on with `start=None`.

    Old latents come first and are copied, offset, skip and thresholds too. New ones start at rows
    drawn with probability proportional to what the old ones leave over, squared: they write that
    direction, and read it (an autoencoder) or what was read there from the mean (a transcoder).
    Their encoder rows are `height` of the mean old length, so that most rows are still served by
    the old latents alone, and for those nothing has changed. A nested dictionary keeps its prefixes
    and gets one more.

    Args:
        dictionary: The smaller one, with a linear or a GLU encoder.
        n_latents: Latents of the new one.
        x: Raw vectors that it reads, some thousand.
        y: What it should write at the same rows; x when absent.
        height: Length of the new encoder rows relative to the old.
        seed: Of the rows that are drawn.

    Raises:
        UserError: no wider than it was, an encoder whose latents share weights, or a transcoder
            without `y`.
    """
    old, spec = dictionary.n_latents, dictionary.spec
    _check(dictionary, n_latents, x, y)
    nesting = (*spec.nesting, n_latents) if spec.nesting else ()
    update = {"n_latents": n_latents, "nesting": nesting}
    grown = Dictionary(spec.model_copy(update=update)).to(dictionary.W_dec)
    read, left, middle = _left_over(dictionary, x, x if y is None else y)
    generator = torch.Generator().manual_seed(seed)
    weight = left.square().sum(1).cpu().clamp_min(1e-12)
    drawn = torch.multinomial(weight, n_latents - old, True, generator=generator).to(left.device)
    toward = left[drawn] if y is None else read[drawn] - middle
    rows = _unit(toward) * height * dictionary.W_enc.norm(dim=1).mean()
    grown.W_enc[old:] = rows
    grown.b_enc[old:] = -rows @ middle
    grown.W_dec[old:] = _unit(left[drawn]) * dictionary.W_dec.norm(dim=1).mean()
    if spec.encoder.kind == "glu":
        grown.encoder.b_gate[old:] = 1.0
    into = grown.state_dict()
    for name, values in dictionary.state_dict().items():
        whole = values.shape == into[name].shape
        (into[name] if whole else into[name][:old]).copy_(values)
    return grown.train(dictionary.training)


def _check(dictionary: Dictionary, n_latents: int, x: Tensor, y: Tensor | None) -> None:
    spec = dictionary.spec
    if n_latents <= spec.n_latents:
        raise UserError(
            f"{spec.name} has {spec.n_latents} latents already: grow it to more, not to {n_latents}"
        )
    if spec.encoder.kind not in ("linear", "glu"):
        raise UserError(
            f"{spec.name} has a {spec.encoder.kind} encoder, whose latents share weights: only "
            "linear and glu ones can be grown"
        )
    same = [p.site for p in spec.reads] == [p.site for p in spec.writes]
    if same != (y is None) or len(x) != len(x if y is None else y):
        raise UserError(
            f"{spec.name} is grown from "
            + ("the vectors that it reads alone" if same else "as many vectors read as written")
        )


def _left_over(dictionary: Dictionary, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the encoder sees, what is missing from what is written, and the mean of the former."""
    spec, training = dictionary.spec, dictionary.training
    rows = dictionary.normalise(x.to(dictionary.W_dec) * dictionary.input_scale)[0]
    wanted = rows if spec.layer_norm else y.to(dictionary.W_dec) * dictionary.output_scale
    missing = wanted - dictionary.eval().run(rows).y
    dictionary.train(training)
    read = rows - dictionary.b_dec if spec.pre_bias else rows
    return read, missing, read.mean(0)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
