"""Starts on rows that repeat, as the first block's do wherever the same token stands."""

import torch

from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_linear


def spec(n_latents=64, k=8):
    return PartSpec(
        name="L0.q", input_site="blocks.0.attn.in", output_site="blocks.0.attn.q", d_in=24,
        d_out=16, n_latents=n_latents, k=k,
    )  # fmt: skip


def repeated(kinds=12, count=600):
    """Rows of a few kinds, the first of them by far the most frequent, and the map they go by."""
    g = torch.Generator().manual_seed(0)
    table, W = torch.randn(kinds, 24, generator=g), torch.randn(24, 16, generator=g)
    kind = torch.multinomial(1 / torch.arange(1, kinds + 1).float() ** 2, count, True, generator=g)
    return table[kind], W


def test_no_latent_is_a_copy_of_another_and_the_start_does_not_overshoot():
    x, W = repeated()
    part = start_linear(spec(), W, x, x @ W, seed=0)
    rows = part.W_enc.detach()
    rows = rows / rows.norm(dim=1, keepdim=True)
    alike = (rows @ rows.T).fill_diagonal_(0)
    # Twelve kinds have 66 differences, either way: a few of 52 random ones are drawn twice.
    assert (alike > 0.9999).float().mean() < 0.03
    y = x @ W
    fvu = ((part(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()
    assert fvu < 0.6


def test_rows_that_do_not_repeat_are_all_taken_before_any_difference_of_two():
    g = torch.Generator().manual_seed(1)
    x, W = torch.randn(40, 24, generator=g), torch.randn(24, 16, generator=g)
    part = start_linear(spec(n_latents=40), W, x, x @ W, seed=0)
    centred = x - x.mean(0)
    near = torch.cosine_similarity(part.W_enc.detach()[:, None], centred[None], dim=-1)
    assert (near > 0.999).sum() == 40
    assert ((near > 0.999).sum(0) == 1).all()
