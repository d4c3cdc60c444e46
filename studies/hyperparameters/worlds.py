"""The vectors of the study: wren at several sites and texts, planted worlds, and a Gaussian."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.progress import watching
from unweave.subject import Subject, TokenRows, load_subject, token_rows
from unweave.validate.worlds.features import PlantedSettings, planted_world

SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare"
TOKENS, CONTEXT, TEXT_SEED = 280_000, 128, 1
PLANTED_ROWS, PLANTED_HELD = 131_072, 16_384

WREN = {
    "wren-resid2-self": ("self", "blocks.2.resid_post"),
    "wren-mlp3-self": ("self", "blocks.3.mlp.out"),
    "wren-attn1-self": ("self", "blocks.1.attn.out"),
    "wren-resid2-shakespeare": ("shakespeare", "blocks.2.resid_post"),
    "wren-mlp3-shakespeare": ("shakespeare", "blocks.3.mlp.out"),
}
PLANTED = {
    "planted-uniform": PlantedSettings(n_features=256, mean_active=5),
    "planted-zipf0.7": PlantedSettings(n_features=512, mean_active=8, firing="zipf"),
    "planted-zipf1.2": PlantedSettings(
        n_features=512, mean_active=3, firing="zipf", zipf_exponent=1.2
    ),
    "planted-groups": PlantedSettings(
        n_features=256, mean_active=6, firing="zipf", zipf_exponent=0.5, group_size=4
    ),
    "planted-noisy": PlantedSettings(
        n_features=256, mean_active=5, magnitudes="lognormal", noise_share=0.2, noise="anisotropic"
    ),
    "planted-dense": PlantedSettings(
        n_features=1024, mean_active=16, firing="zipf", magnitudes="lognormal"
    ),
    "planted-wide": PlantedSettings(
        d=128, n_features=1024, mean_active=10, firing="zipf", noise_share=0.05
    ),
    "planted-families": PlantedSettings(
        n_features=512, mean_active=6, firing="zipf", n_parents=64, children=2
    ),
}
GAUSSIAN = "gaussian"
NAMES = (*WREN, *PLANTED, GAUSSIAN)


class Data(NamedTuple):
    train: Tensor
    heldout: Tensor
    tokens: Tensor | None
    """Training tokens, where there is text."""


@cache
def subject() -> Subject:
    return load_subject("wren")


@cache
def text(name: str) -> TokenRows:
    source = str(SHAKESPEARE) if name == "shakespeare" else name
    return token_rows(
        subject(), source, tokens=TOKENS, context=CONTEXT, seed=TEXT_SEED, progress=watching()
    )


@cache
def data(name: str) -> Data:
    """Vectors to train on and to judge by; the same for the same name."""
    if name in WREN:
        source, site = WREN[name]
        rows = text(source)
        return Data(_harvest(rows.train, site), _harvest(rows.heldout, site), rows.train)
    if name in PLANTED:
        world = planted_world(PLANTED[name], seed=11)
        train, _ = world.draw(PLANTED_ROWS, seed=21)
        heldout, _ = world.draw(PLANTED_HELD, seed=22)
        return Data(train, heldout, None)
    generator = torch.Generator().manual_seed(31)
    spread = torch.arange(1, 65).float() ** -0.5
    rows = torch.randn(PLANTED_ROWS + PLANTED_HELD, 64, generator=generator) * spread
    return Data(rows[:PLANTED_ROWS], rows[PLANTED_ROWS:], None)


def _harvest(rows: Tensor, site: str) -> Tensor:
    with Workers(1) as workers:
        window = Harvester(
            subject(),
            rows,
            [site],
            workers=workers,
            seed=0,
            settings=HarvestSettings(window_tokens=rows.numel()),
        ).window(0)
    return window.vectors[site][window.order].clone()
