"""What the page tells, as frozen values: the readers make them, the sections draw them."""

from dataclasses import dataclass

from unweave.artifact.manifest import Manifest
from unweave.artifact.scores import Scores


@dataclass(frozen=True)
class Described:
    """A feature's description and how it did on held-out text."""

    text: str
    """The words."""
    auroc: float | None
    """Detection: chance is 0.5."""
    correlation: float | None
    """Correlation of predicted with true activation."""
    bits: float
    """What the words cost, bits."""


@dataclass(frozen=True)
class Piece:
    """A run of text in an example: one token that fires, or several that do not."""

    text: str
    """The tokens' text."""
    value: float
    """Activation; 0 for a run in which nothing fires."""
    level: int
    """Shade from 0 (nothing) to 9 (the feature's greatest activation)."""
    peak: bool
    """Whether the example was chosen for this token."""


@dataclass(frozen=True)
class Example:
    """A place where a feature fires."""

    band: int
    """0: among the strongest; 1, 2 ...: quantiles downwards."""
    value: float
    """Activation at the peak."""
    pieces: tuple[Piece, ...]
    """The text around it."""


@dataclass(frozen=True)
class Feature:
    """One feature of the gallery."""

    id: str
    """`L7.mlp/1234@3fa9c2`."""
    part: str
    """`L7.mlp`."""
    frequency: float
    """Share of tokens on which it fires."""
    mean: float
    """Mean activation where it fires."""
    greatest: float
    """Greatest activation."""
    histogram: tuple[int, ...]
    """How often each bin of activation occurred."""
    edges: tuple[float, ...]
    """The bins' borders, one more than bins."""
    examples: tuple[Example, ...]
    """Strongest first."""
    promoted: tuple[tuple[str, float], ...]
    """(token, direct effect on its logit), strongest first."""
    suppressed: tuple[tuple[str, float], ...]
    """(token, direct effect on its logit), most negative first."""
    described: Described | None
    """Its description, if it has one."""


@dataclass(frozen=True)
class Gallery:
    """The features shown and what they were chosen from."""

    features: tuple[Feature, ...]
    """By part, best description first."""
    aurocs: tuple[float, ...]
    """Detection scores of all described features."""
    controls: tuple[float, ...]
    """The same with shuffled labels."""


@dataclass(frozen=True)
class End:
    """One end of an interaction."""

    id: str
    """Feature id, `token/17` or `logit/17`."""
    words: str
    """The feature's description or the token's text; empty where there is none."""
    token: bool
    """Whether `words` is a token."""


@dataclass(frozen=True)
class Edge:
    """An interaction read from the weights."""

    source: End
    target: End
    weight: float
    """Virtual weight."""
    used: float
    """What it delivers: weight times the source's mean activation while the target fires."""


@dataclass(frozen=True)
class Graph:
    """The strongest interactions of each kind."""

    total: int
    """Edges in the artifact."""
    inner: tuple[Edge, ...]
    """Feature to feature."""
    inputs: tuple[Edge, ...]
    """Token to feature."""
    outputs: tuple[Edge, ...]
    """Feature to logit."""


@dataclass(frozen=True)
class Sample:
    """One prompt, continued twice."""

    prompt: str
    original: str
    """The subject's continuation, without the prompt."""
    decompiled: str
    """The decompiled network's."""
    temperature: float = 0.0
    """0 where each takes its likeliest token; above, both draw with the same chance."""


@dataclass(frozen=True)
class Story:
    """The whole page."""

    manifest: Manifest
    scores: Scores
    gallery: Gallery | None
    """None: the artifact holds no feature summaries."""
    graph: Graph | None
    """None: the artifact holds no graph."""
    samples: tuple[Sample, ...] | None
    """None: the artifact holds no samples."""
