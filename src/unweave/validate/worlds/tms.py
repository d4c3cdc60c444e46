"""The toy model of superposition: more features than dimensions, kept apart by sparsity.

    x^ = relu(W^T W x + b),  W [hidden, features]

trained to reproduce sparse inputs; W's columns end as directions spread evenly (a pentagon for 5
features in 2 dimensions). With `identity`, a fixed identity matrix stands between W and W^T: a
layer whose only mechanisms are its own dimensions. Elhage et al. 2022; targets of APD (Braun et
al. 2025) and SPD (Bushnaq, Braun & Sharkey 2025).
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn


class TMSSettings(BaseModel):
    """A toy model of superposition and its training (defaults: the paper's 5-2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    features: PositiveInt = 5
    """Inputs and outputs."""
    hidden: PositiveInt = 2
    """Dimensions between."""
    identity: bool = False
    """Whether a fixed identity matrix stands in the middle."""
    probability: float = Field(default=0.05, gt=0, le=1)
    """How often each feature is present, independently of the others."""
    steps: PositiveInt = 10_000
    """Steps of AdamW."""
    batch: PositiveInt = 1024
    """Inputs a step."""
    lr: PositiveFloat = 5e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""


class TMS(nn.Module):
    """x^ = relu(up(middle(down(x)))), the layers as separate modules so that each can be named."""

    def __init__(self, settings: TMSSettings) -> None:
        super().__init__()
        self.settings = settings
        self.down = nn.Linear(settings.features, settings.hidden, bias=False)
        self.middle: nn.Module = nn.Identity()
        if settings.identity:
            self.middle = nn.Linear(settings.hidden, settings.hidden, bias=False)
            nn.init.eye_(self.middle.weight)
        self.up = nn.Linear(settings.hidden, settings.features)
        self.requires_grad_(False)

    def set_(self, W: Float[Tensor, "hidden features"], b: Float[Tensor, " features"]) -> None:
        """Take W for the way in, its transpose for the way out, and b."""
        self.down.weight.data.copy_(W)
        self.up.weight.data.copy_(W.T)
        self.up.bias.data.copy_(b)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The model's reconstruction of its input."""
        return torch.relu(self.up(self.middle(self.down(x))))


def untrained_tms(settings: TMSSettings, *, seed: int) -> TMS:
    """The model before training: normal entries, columns of length about one, no bias."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(settings.hidden, settings.features, generator=generator)
    model = TMS(settings)
    model.set_(W * settings.hidden**-0.5, torch.zeros(settings.features))
    return model


def train_tms(settings: TMSSettings, *, seed: int) -> TMS:
    """Train the model on the mean squared error; its parameters are frozen afterwards."""
    model = untrained_tms(settings, seed=seed)
    W = model.down.weight.detach().clone().requires_grad_()
    b = model.up.bias.detach().clone().requires_grad_()
    adam = torch.optim.AdamW([W, b], lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(settings.steps):
        x = sparse_features(
            settings.batch, settings.features, settings.probability, generator=generator
        )
        # One matrix for both ways: the fixed identity between them changes nothing here.
        loss = (torch.relu(x @ W.T @ W + b) - x).square().mean()
        W.grad, b.grad = torch.autograd.grad(loss, (W, b))
        adam.step()
    model.set_(W.detach(), b.detach())
    return model


def sparse_features(
    rows: int,
    features: int,
    probability: float,
    *,
    generator: torch.Generator,
    low: float = 0.0,
) -> Float[Tensor, "rows features"]:
    """Inputs whose entries are present with `probability`, then uniform from `low` to 1."""
    present = torch.rand(rows, features, generator=generator) < probability
    value = torch.rand(rows, features, generator=generator)
    return (low + (1 - low) * value) * present
