"""Weights that Tracr compiled from programs, read from plain arrays and JSON.

A folder of cases as InterpBench publishes them (Gupta et al. 2024; Tracr: Lindner et al. 2023):
`case_N.npz` with the arrays by their Haiku names, `case_N.json` with what every direction of the
residual stream stands for, and inputs with their outputs. The edges of the program are not there;
they are read off the weights, which is exact as every variable has directions of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unweave.errors import UserError
from unweave.subject import Subject, wrap_module
from unweave.validate.circuit_truth import merged_target
from unweave.validate.worlds.programs.compiled import candidate_edges
from unweave.validate.worlds.programs.edge_scores import reading, writing
from unweave.validate.worlds.programs.layout import EMBED, LOGITS, POSITIONS, Edge
from unweave.validate.worlds.programs.network import NetworkConfig, ProgramNetwork

CONSTANT = ("one", "tokens:BOS", "tokens:compiler_pad")
"""Directions that carry nothing that varies after the start of a row."""
Answer = str | int | float | bool


@dataclass(frozen=True)
class TracrCase:
    """One compiled program."""

    name: str
    """`case_N`."""
    description: str
    """What the program does, in its author's words."""
    subject: Subject
    """The network; tokens that are only outputs come after those that are inputs."""
    tokens: tuple[str, ...]
    """What every token id stands for."""
    labels: tuple[str, ...]
    """What every direction of the residual stream stands for: `variable:value` or `variable`."""
    output: str
    """The variable that nobody reads: the program's result."""
    edges: frozenset[Edge]
    """The program's edges, read off the weights."""
    writing: frozenset[str]
    """Heads and MLPs that the data say write something, by component name."""
    examples: tuple[tuple[list[Answer], list[Answer]], ...]
    """Inputs without the start, and outputs after it."""

    def encode(self, words: Sequence[Answer]) -> Int[Tensor, "1 pos"]:
        """One input as token ids, after the start token."""
        start = self.tokens.index("BOS")
        return torch.tensor([[start, *(self.tokens.index(str(word)) for word in words)]])

    def draw(self, rows: int, *, length: int, seed: int) -> Int[Tensor, "rows pos"]:
        """Rows of uniformly random input tokens."""
        start, pad = self.tokens.index("BOS"), self.tokens.index("compiler_pad")
        words = [i for i, t in enumerate(self.tokens) if i not in (start, pad)]
        inputs = torch.tensor([i for i in words if f"tokens:{self.tokens[i]}" in self.labels])
        generator = torch.Generator().manual_seed(seed)
        drawn = inputs[torch.randint(len(inputs), (rows, length), generator=generator)]
        return torch.cat([torch.full((rows, 1), start), drawn], dim=1)

    @torch.no_grad()
    def answer(self, words: Sequence[Answer]) -> list[str] | list[float]:
        """What the network computes after the start: labels, or numbers for a numerical output."""
        found = self.subject.run(self.encode(words), capture=["final"], logits=False).sites["final"]
        dims = _dims(self.labels, self.output)
        held = found[0, 1:, dims]
        if self.labels[dims[0]] == self.output:
            return held[:, 0].tolist()
        return [self.labels[dims[place]].split(":", 1)[1] for place in held.argmax(-1).tolist()]

    def wrong(self, tolerance: float = 1e-3) -> int:
        """How many of the stated examples the network does not reproduce.

        Numbers may be off by `tolerance`.
        """
        wrong = 0
        for words, outputs in self.examples:
            pairs = list(zip(list[str | float](self.answer(words)), outputs, strict=True))
            wrong += not all(_agree(given, said, tolerance) for given, said in pairs)
        return wrong


def _agree(given: str | float, said: Answer, tolerance: float) -> bool:
    if isinstance(given, float):
        return not isinstance(said, str) and abs(given - float(said)) <= tolerance
    if given == str(said):
        return True
    try:
        return abs(float(given) - float(said)) <= tolerance
    except ValueError:
        return False


def tracr_cases(folder: Path) -> list[str]:
    """The names of the cases in a folder, in the order of their numbers."""
    names = [path.stem for path in folder.glob("case_*.json") if path.with_suffix(".npz").is_file()]
    return sorted(names, key=lambda name: int(name.removeprefix("case_")))


def load_tracr(folder: Path, name: str) -> TracrCase:
    """Load one case.

    Raises:
        UserError: no such case, or weights that are not those of a network without layer norm.
    """
    try:
        facts = json.loads((folder / f"{name}.json").read_text("utf-8"))
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            weights = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no whole case {name}: {error}") from error
    if facts["layer_norm"] or facts["activation"] != "relu":
        raise UserError(f"{name} has layer norm or no ReLU; only networks without norm are read")
    labels = tuple(facts["residual_labels"])
    words = tuple(_word(row, labels) for row in weights["token_embed/embeddings"])
    output = _output(labels, weights, facts["num_layers"])
    answers = [labels[dim] for dim in _dims(labels, output)]
    shown = [label.split(":", 1)[-1] for label in answers]
    tokens = (*words, *(answer for answer in shown if answer not in words))
    network = _network(facts, weights, tokens, labels, dict(zip(answers, shown, strict=True)))
    subject = wrap_module(network, name=name)
    return TracrCase(
        name=name,
        description=facts["description"],
        subject=subject,
        tokens=tokens,
        labels=labels,
        output=output,
        edges=_edges(subject, labels),
        writing=_writing(facts["ground_truth_components"]),
        examples=tuple((given, said[1:]) for given, said in facts["examples"]),
    )


def _variable(label: str) -> str:
    return label.split(":", 1)[0]


def _dims(labels: Sequence[str], variable: str) -> list[int]:
    return [dim for dim, label in enumerate(labels) if _variable(label) == variable]


def _word(row: Tensor, labels: Sequence[str]) -> str:
    said = [labels[d] for d in row.nonzero()[:, 0].tolist() if _variable(labels[d]) == "tokens"]
    return said[0].split(":", 1)[1]


def _output(labels: Sequence[str], weights: dict[str, Tensor], n_layers: int) -> str:
    """The one variable that a component writes and none reads."""
    reads = [
        weights[f"transformer/layer_{layer}/{part}/w"]
        for layer in range(n_layers)
        for part in ("attn/query", "attn/key", "attn/value", "mlp/linear_1")
    ]
    read = torch.stack([(w != 0).any(1) for w in reads]).any(0)
    given = {"tokens", "indices", "one"}
    unread = {_variable(label) for label in labels} - given
    unread -= {_variable(label) for label, seen in zip(labels, read.tolist(), strict=True) if seen}
    if len(unread) != 1:
        raise UserError(f"The output cannot be told: nobody reads {', '.join(sorted(unread))}")
    return unread.pop()


def _network(
    facts: dict,
    weights: dict[str, Tensor],
    tokens: Sequence[str],
    labels: Sequence[str],
    shown: dict[str, str],
) -> ProgramNetwork:
    network = ProgramNetwork(
        NetworkConfig(
            vocab_size=len(tokens),
            max_position_embeddings=len(weights["pos_embed/embeddings"]),
            hidden_size=len(labels),
            num_hidden_layers=facts["num_layers"],
            num_attention_heads=facts["num_heads"],
            head_dim=facts["key_size"],
            intermediate_size=facts["mlp_hidden"],
            causal=facts["causal"],
            bos_token_id=tokens.index("BOS"),
        )
    )
    state = network.state_dict()
    words = weights["token_embed/embeddings"]
    state["embed.weight"][: len(words)] = words
    state["positions.weight"].copy_(weights["pos_embed/embeddings"])
    names = {"attn/query": "attn.q", "attn/key": "attn.k", "attn/value": "attn.v"}
    names |= {"attn/linear": "attn.out", "mlp/linear_1": "mlp.up", "mlp/linear_2": "mlp.down"}
    for layer in range(facts["num_layers"]):
        for theirs, ours in names.items():
            source = f"transformer/layer_{layer}/{theirs}"
            state[f"blocks.{layer}.{ours}.weight"].copy_(weights[f"{source}/w"].T)
            state[f"blocks.{layer}.{ours}.bias"].copy_(weights[f"{source}/b"])
    for label, word in shown.items():
        state["unembed.weight"][tokens.index(word), labels.index(label)] = 1.0
    return network


def _writing(components: dict) -> frozenset[str]:
    found = set()
    for layer, facts in components.items():
        number = layer.removeprefix("layer_")
        found |= {f"blocks.{number}.head.{head}" for head in facts["heads_writing"]}
        found |= {f"blocks.{number}.mlp"} if facts["mlp_writes"] else set()
    return frozenset(found)


def _edges(subject: Subject, labels: Sequence[str]) -> frozenset[Edge]:
    """Where one component writes a variable that another reads, on the way to the output.

    A variable with one value, or all of whose values are read alike, tells nothing.
    """
    dims = {
        name: own
        for name in sorted({_variable(label) for label in labels})
        if (own := [d for d in _dims(labels, name) if labels[d] not in CONSTANT])
        and (len(own) > 1 or labels[own[0]] == name)
    }

    def heard(target: str) -> set[str]:
        weight = reading(subject, target)
        head, role = merged_target(target), target[-1]
        if target != LOGITS and role in "qk":
            # What a query reads matters as far as keys answer to it, and the other way round.
            weight = weight @ reading(subject, f"{head}.{'k' if role == 'q' else 'q'}").T
        return {
            name
            for name, own in dims.items()
            if (weight[own] != (weight[own][0] if len(own) > 1 else 0)).any()
        }

    def told(source: str) -> set[str]:
        weight = writing(subject, source)
        return {name for name, own in dims.items() if (weight[:, own] != 0).any()}

    candidates = candidate_edges(subject)
    tells = {edge.source: told(edge.source) for edge in candidates}
    hears = {edge.target: heard(edge.target) for edge in candidates}
    tells |= {EMBED: {"tokens"}, POSITIONS: {"indices"}}
    carrying = {edge for edge in candidates if tells[edge.source] & hears[edge.target]}
    reached, grown = set[Edge](), {LOGITS}
    while grown:
        new = {edge for edge in carrying - reached if merged_target(edge.target) in grown}
        reached |= new
        grown = {edge.source for edge in new}
    return frozenset(reached)
