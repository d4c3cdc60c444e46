"""The targets that are taken apart, and with which settings; what differs from the paper is said.

Everywhere: batches are smaller and steps fewer than published, the learning rate is higher to
make up for it, and inputs that are all zero (77% of those of TMS 5-2) are not drawn.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unweave.training.components import ComponentsSettings
from unweave.validate.worlds.compressed import (
    CompressedSettings,
    ResidualMLP,
    compressed_inputs,
    train_compressed,
)
from unweave.validate.worlds.tms import TMSSettings, sparse_features, train_tms, untrained_tms


@dataclass(frozen=True)
class Case:
    """One target and how it is taken apart."""

    world: TMSSettings | CompressedSettings
    pieces: int
    settings: ComponentsSettings
    rows: int
    trained: bool = True
    # How often a feature is present while decomposing, where not as in the target's training.
    density: float | None = None
    # Matrices whose features are their outputs, and those that have none of their own.
    by_output: frozenset[str] = field(default_factory=lambda: frozenset({"up"}))
    without_features: frozenset[str] = field(
        default_factory=lambda: frozenset({"middle", "layers.0.mlp_out"})
    )

    def target(self, seed: int) -> nn.Module:
        if isinstance(self.world, CompressedSettings):
            return train_compressed(self.world, seed=seed)
        return (train_tms if self.trained else untrained_tms)(self.world, seed=seed)

    def matrices(self, target: nn.Module) -> list[str]:
        return [name for name, module in target.named_modules() if isinstance(module, nn.Linear)]

    def directions(self, target: nn.Module, name: str) -> Tensor | None:
        """Where the features lie in the input of a matrix, if not on its axes."""
        return target.W_E if isinstance(target, ResidualMLP) else None

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        if isinstance(self.world, CompressedSettings):
            return compressed_inputs(self.world, rows, generator=generator)
        density = self.density or self.world.probability
        return sparse_features(rows, self.world.features, density, generator=generator)

    def draw_for_training(self, generator: torch.Generator) -> Tensor:
        """Without the inputs that are all zero: no piece matters there and no output errs."""
        x = self.draw(self.rows, generator)
        return x[(x != 0).any(1)]

    def learning(self) -> ComponentsSettings:
        """Faithfulness weighed as if the zero inputs were there and diluted the other terms."""
        density = self.density or self.world.probability
        share = 1 - (1 - density) ** self.world.features
        return self.settings.model_copy(update={"faithfulness_weight": 1 / share})


FIVE = TMSSettings(steps=3000)
FIVE_SETTINGS = ComponentsSettings(steps=8000, lr=1e-2, importance_weight=3e-3)
FORTY = TMSSettings(features=40, hidden=10, steps=3000)
MLP = CompressedSettings(batch=1024)
MLP_SETTINGS = ComponentsSettings(steps=6000, lr=2e-3, importance_weight=1e-5, importance_power=2.0)

CASES = {
    "TMS 5-2": Case(FIVE, 20, FIVE_SETTINGS, 512),
    "TMS 5-2 + identity": Case(FIVE.model_copy(update={"identity": True}), 20, FIVE_SETTINGS, 512),
    "TMS 40-10": Case(
        FORTY,
        200,
        ComponentsSettings(steps=8000, lr=4e-3, importance_weight=3e-4),
        192,
    ),
    "residual MLP, 1 layer": Case(MLP, 100, MLP_SETTINGS, 256),
    "residual MLP, 1 layer, three times the rate": Case(
        MLP, 100, MLP_SETTINGS.model_copy(update={"lr": 6e-3}), 256
    ),
    "residual MLP, 1 layer, as long as published": Case(
        MLP, 100, MLP_SETTINGS.model_copy(update={"steps": 30_000, "lr": 6e-3}), 256
    ),
    "TMS 40-10, three times as long": Case(
        FORTY,
        200,
        ComponentsSettings(steps=24_000, lr=4e-3, importance_weight=3e-4),
        192,
    ),
    "TMS 5-2, untrained target": Case(FIVE, 20, FIVE_SETTINGS, 512, trained=False),
    "TMS 5-2, dense inputs": Case(FIVE, 20, FIVE_SETTINGS, 128, density=1.0),
}
