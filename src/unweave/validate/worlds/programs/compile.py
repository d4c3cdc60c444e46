"""Programs to weights.

- A one-hot direction for every value; a head's keys are the values that it can be asked for, its
  queries the values they go with, so a score is 1 where the predicate holds and 0 elsewhere.
- The start of the row scores one half: it is attended to where nothing is selected. For a `Share`
  it scores 1, and what it is attended with is 1 / (1 + selected).
- Scores are multiplied until softmax is as good as a hard choice.
- MLPs are tables (one neuron a combination of values), steps (two neurons a threshold) and sums.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat
from torch import Tensor

from unweave.subject import wrap_module
from unweave.validate.worlds.programs.compiled import Compiled, project
from unweave.validate.worlds.programs.language import (
    Aggregate,
    Bin,
    Combine,
    Map,
    Operator,
    Select,
    Share,
    categories,
)
from unweave.validate.worlds.programs.layout import Layout, Variable, lay_out, true_edges
from unweave.validate.worlds.programs.network import MLP, NetworkConfig, ProgramNetwork
from unweave.validate.worlds.programs.program import Program

LATEST = 0.4
"""What the last place scores above the first where only the latest selected place is kept."""


class CompileSettings(BaseModel):
    """How a program becomes weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sharpness: PositiveFloat = 50.0
    """Nats between the score that should win and the next one: leaves e^-sharpness to the rest."""
    logit_scale: PositiveFloat = 10.0
    """Logit of the program's answer; all others are 0."""
    rotation: NonNegativeInt | None = None
    """Seed of a random orthonormal basis for the residual stream; None for the neurons' own."""


@dataclass
class _Neurons:
    """The MLP of one block as it grows: what every neuron reads, its bias, and what it writes."""

    reads: list[Tensor] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)

    def add(self, read: Tensor, bias: float, write: Tensor) -> None:
        self.reads.append(read)
        self.biases.append(bias)
        self.writes.append(write)

    def put(self, mlp: MLP) -> None:
        if self.reads:
            mlp.up.weight[: len(self.reads)] = torch.stack(self.reads)
            mlp.up.bias[: len(self.reads)] = torch.tensor(self.biases)
            mlp.down.weight[:, : len(self.reads)] = torch.stack(self.writes, dim=1)


def compile_program(
    program: Program, *distractors: Operator, settings: CompileSettings | None = None
) -> Compiled:
    """Make the network that computes a program.

    Distractors are operators over the same `tokens` and `indices` that are computed as well, at
    full strength, and that the output does not depend on.
    """
    settings = settings or CompileSettings()
    layout = lay_out(program.tokens, program.indices, program.output, *distractors)
    mlps = [_mlp(layout, layer) for layer in range(layout.n_layers)]
    attending = [v for v in layout.variables.values() if isinstance(v.operator, Aggregate | Share)]
    config = NetworkConfig(
        vocab_size=len(program.vocabulary),
        max_position_embeddings=program.context,
        hidden_size=layout.size,
        num_hidden_layers=layout.n_layers,
        num_attention_heads=layout.n_heads,
        head_dim=max([1, *(_head_width(v) for v in attending)]),
        intermediate_size=max([1, *(len(mlp.biases) for mlp in mlps)]),
        causal=program.causal,
    )
    network = ProgramNetwork(config)
    with torch.no_grad():
        _set_ends(network, layout, program, settings)
        for variable in attending:
            _set_head(network, layout, variable, settings)
        for layer, neurons in enumerate(mlps):
            neurons.put(network.block(layer).mlp)
    basis = torch.eye(layout.size)
    if settings.rotation is not None:
        generator = torch.Generator().manual_seed(settings.rotation)
        basis = torch.linalg.qr(torch.randn(layout.size, layout.size, generator=generator)).Q
        network = project(network, basis)
    return Compiled(
        program=program,
        subject=wrap_module(network, name=program.name),
        layout=layout,
        directions=basis,
        edges=true_edges(layout, program.output),
    )


def _set_ends(
    network: ProgramNetwork, layout: Layout, program: Program, settings: CompileSettings
) -> None:
    """Embeddings and unembedding."""
    network.embed.weight[0, 0] = 1.0
    words = layout.variables[program.tokens].span
    network.embed.weight[1 : 1 + len(program.tokens.vocabulary), words] = torch.eye(
        len(program.tokens.vocabulary)
    )
    places = layout.variables[program.indices].span
    network.positions.weight[1:, places] = torch.eye(program.indices.length)
    read = layout.read(program.output)
    for value, row in zip(categories(program.output), read, strict=True):
        network.unembed.weight[program.answer_ids[value]] = settings.logit_scale * row


def _head_width(variable: Variable) -> int:
    operator = variable.operator
    assert isinstance(operator, Aggregate | Share)
    return max(len(categories(operator.select.keys)) + 2, variable.size)


def _set_head(
    network: ProgramNetwork, layout: Layout, variable: Variable, settings: CompileSettings
) -> None:
    """One head; the width of a head holds a dimension for each key, the start and the latest."""
    operator = variable.operator
    assert isinstance(operator, Aggregate | Share)
    _, layer, _, head = variable.component.split(".")
    width = network.config.head_dim
    span = slice(int(head) * width, (int(head) + 1) * width)
    attention = network.block(int(layer)).attn
    q, bias, k = _scoring(layout, operator.select, width, start=_start_score(operator))
    sharp = settings.sharpness / _gap(operator) * width**0.5
    attention.q.weight[span], attention.q.bias[span] = sharp * q, sharp * bias
    attention.k.weight[span] = k
    v, out = torch.zeros(width, layout.size), torch.zeros(layout.size, width)
    out[variable.span, : variable.size] = torch.eye(variable.size)
    if isinstance(operator, Share):
        v[0, 0] = 1.0
    elif operator.domain is None:
        v[0] = layout.read(operator.values)[0]
    else:
        for value, row in zip(
            categories(operator.values), layout.read(operator.values), strict=True
        ):
            v[operator.domain.index(value)] += row
        v[operator.domain.index(None), 0] += 1.0
    attention.v.weight[span], attention.out.weight[:, span] = v, out


def _start_score(operator: Aggregate | Share) -> float:
    return 1.0 if isinstance(operator, Share) else 0.5


def _gap(operator: Aggregate | Share) -> float:
    """Between the score that should win and the next one."""
    latest = operator.select.latest
    if latest is not None and latest.length > 1:
        return LATEST / (latest.length - 1)
    return 1.0 - 0.5 * isinstance(operator, Aggregate)


def _scoring(
    layout: Layout, select: Select, width: int, *, start: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries' weight and bias and keys' weight, before the scores are sharpened."""
    asked = len(categories(select.keys))
    q, bias = torch.zeros(width, layout.size), torch.zeros(width)
    k = torch.zeros(width, layout.size)
    holds = torch.tensor(select.table(), dtype=torch.float32)  # [keys, queries]
    q[:asked] = holds @ layout.read(select.queries)
    k[:asked] = layout.read(select.keys)
    bias[asked], k[asked, 0] = start, 1.0
    if select.latest is not None:
        rise = torch.linspace(0, LATEST, select.latest.length)
        bias[asked + 1] = 1.0
        k[asked + 1] = rise @ layout.read(select.latest)
    return q, bias, k


def _mlp(layout: Layout, layer: int) -> _Neurons:
    neurons = _Neurons()
    for variable in layout.variables.values():
        if variable.slot == 2 * layer + 1:
            match variable.operator:
                case Map() as operator:
                    _add_table(neurons, layout, variable, operator)
                case Bin() as operator:
                    _add_steps(neurons, layout, variable, operator)
                case Combine() as operator:
                    _add_sum(neurons, layout, variable, operator)
    return neurons


def _direction(layout: Layout, variable: Variable, place: int = 0) -> Tensor:
    return torch.eye(layout.size)[variable.start + place]


def _add_table(neurons: _Neurons, layout: Layout, variable: Variable, operator: Map) -> None:
    """A neuron for each combination of values, on when all of them are there."""
    reads = [dict(zip(categories(one), layout.read(one), strict=True)) for one in operator.of]
    for given in operator.given():
        value = operator.function(*given)
        if operator.domain is None:
            write = _direction(layout, variable) * float(value or 0)
        else:
            write = _direction(layout, variable, operator.domain.index(value))
        if write.any():
            read = torch.stack([r[v] for r, v in zip(reads, given, strict=True)]).sum(0)
            neurons.add(read, 1.0 - len(given), write)


def _add_steps(neurons: _Neurons, layout: Layout, variable: Variable, operator: Bin) -> None:
    """Steps half way between points, each from 0 to 1 within a quarter of the way to either."""
    number, start = layout.read(operator.of)[0], torch.eye(layout.size)[0]
    at = partial(_direction, layout, variable)
    points, labels = list(operator.points), list(operator.points.values())
    place = [operator.domain.index(label) for label in labels]
    neurons.add(-start, 1.0, at(place[0]))
    for i in range(1, len(points)):
        middle, steep = (points[i - 1] + points[i]) / 2, 2 / (points[i] - points[i - 1])
        change = at(place[i]) - at(place[i - 1])
        # The start of a row must be on neither side of any step.
        read = steep * number - (steep * abs(middle) + 1) * start
        if change.any():
            neurons.add(read, 0.5 - steep * middle, change)
            neurons.add(read, -0.5 - steep * middle, -change)


def _add_sum(neurons: _Neurons, layout: Layout, variable: Variable, operator: Combine) -> None:
    """Two neurons, for the positive and the negative part."""
    pairs = zip(operator.weights, operator.of, strict=True)
    read = torch.stack([w * layout.read(one)[0] for w, one in pairs]).sum(0)
    write = _direction(layout, variable)
    neurons.add(read, 0.0, write)
    neurons.add(-read, 0.0, -write)
