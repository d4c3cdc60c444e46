"""Compressed computation: a residual MLP with more functions to compute than neurons.

    y = x + relu(x) for 100 features, through 50 neurons

    r = x W_E,  r' = r + W_out relu(W_in r),  y^ = r' W_E^T

with W_E fixed random unit rows. Each feature's relu is spread over many neurons, and each neuron
serves many features. Target of APD (Braun et al. 2025) and SPD (Bushnaq, Braun & Sharkey 2025).
"""

import math

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from unweave.validate.worlds.tms import sparse_features


class CompressedSettings(BaseModel):
    """A residual MLP and its training (defaults: the paper's one-layer model)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    features: PositiveInt = 100
    """Inputs and outputs."""
    width: PositiveInt = 1000
    """Dimensions of the residual stream."""
    neurons: PositiveInt = 50
    """Neurons of each MLP."""
    layers: PositiveInt = 1
    """MLPs, one after the other."""
    probability: float = Field(default=0.01, gt=0, le=1)
    """How often each feature is present; its value is then uniform from -1 to 1."""
    steps: PositiveInt = 1000
    """Steps of AdamW."""
    batch: PositiveInt = 2048
    """Inputs a step."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate, falling to zero along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""


class ResidualBlock(nn.Module):
    """r + mlp_out(relu(mlp_in(r))), without biases."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.mlp_in = nn.Linear(width, neurons, bias=False)
        self.mlp_out = nn.Linear(neurons, width, bias=False)

    def forward(self, r: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The stream after the block."""
        return r + self.mlp_out(torch.relu(self.mlp_in(r)))


class ResidualMLP(nn.Module):
    """Embedding, residual blocks and the embedding's transpose; only the blocks are learned."""

    W_E: Float[Tensor, "features width"]

    def __init__(self, settings: CompressedSettings, *, seed: int) -> None:
        super().__init__()
        self.settings = settings
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(settings.features, settings.width, generator=generator)
        self.register_buffer("W_E", drawn / drawn.norm(dim=1, keepdim=True))
        self.layers = nn.ModuleList(
            ResidualBlock(settings.width, settings.neurons) for _ in range(settings.layers)
        )
        for parameter in self.parameters():
            scale = 1 / math.sqrt(parameter.shape[1])
            parameter.data.uniform_(-scale, scale, generator=generator)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The model's guess at x + relu(x)."""
        r = x @ self.W_E
        for layer in self.layers:
            r = layer(r)
        return r @ self.W_E.T


def train_compressed(settings: CompressedSettings, *, seed: int) -> ResidualMLP:
    """Train the blocks on the mean squared error; all parameters are frozen afterwards."""
    model = ResidualMLP(settings, seed=seed)
    adam = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for step in range(settings.steps):
        x = compressed_inputs(settings, settings.batch, generator=generator)
        loss = (model(x) - x - torch.relu(x)).square().mean()
        for group in adam.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad()
    return model.requires_grad_(False)


def compressed_inputs(
    settings: CompressedSettings, rows: int, *, generator: torch.Generator
) -> Float[Tensor, "rows features"]:
    """Inputs as the model was trained on."""
    return sparse_features(
        rows, settings.features, settings.probability, generator=generator, low=-1.0
    )
