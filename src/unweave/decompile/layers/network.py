"""The network of layers of features: tokens -> f^1 -> ... -> f^L -> logits.

Unlike the component construction, where the stream is a sum of everything written so far, each
layer's features are all that the next block knows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.decompile.layers.block import FeatureBlock, MatrixBlock, Step, build_block
from unweave.decompile.layers.codes import activate, n_features, product, square
from unweave.decompile.layers.patterns import FeaturePatterns
from unweave.decompile.layers.spec import LayersSpec
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.scores import Scoring, scoring


class LayerRun(NamedTuple):
    """One pass, with everything that was on."""

    logits: Float[Tensor, "batch pos vocab"]
    """Predictions."""
    features: list[Float[Tensor, "batch pos _"]]
    """Features after each block, constants included."""
    steps: list[Step]
    """What each block did."""
    patterns: list[Float[Tensor, "batch heads query key"]]
    """Along which features were moved."""


class LayerNetwork(nn.Module):
    """A decompiled network of layers.

    ```python
    network = LayerNetwork.load(folder, subject)
    logits = network(tokens).logits  # [batch, pos, vocab]
    ```

    The subject is asked only how positions turn its heads.
    """

    gram: Tensor

    def __init__(self, spec: LayersSpec, subject: Subject) -> None:
        super().__init__()
        if spec.fingerprint != subject.fingerprint:
            raise UserError(
                f"these layers were made from {spec.subject}, and {subject.name} has other "
                "weights: load the network that they belong to"
            )
        self.spec = spec
        self.blocks = nn.ModuleList(build_block(block, spec.eps) for block in spec.blocks)
        self.looks = nn.ModuleList(
            FeaturePatterns(looks, block.features_in, block.heads, spec.kv_heads, spec.d_head)
            for looks, block in zip(spec.patterns, spec.blocks, strict=False)
        )
        last = n_features(spec.blocks[-1].n_out)
        self.register_buffer("gram", torch.zeros(last, last))
        self.W_logits = nn.Parameter(torch.zeros(last, spec.vocab))
        self._scoring: list[Scoring] = [
            scoring(subject, layer, subject.context) for layer in range(len(spec.blocks))
        ]
        self.eval()

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        patterns: Sequence[Tensor] | None = None,
        given: Mapping[int, Tensor] | None = None,
        explicit: bool = False,
    ) -> LayerRun:
        """Logits and everything before them.

        Args:
            tokens: rows that begin with the start token.
            patterns: the heads' patterns by block, where they are not made of features here, or
                shall not be.
            given: by block, features that it reads in the place of those that came out of the
                block before it.
            explicit: whether scores come from pairs of features rather than through heads' own
                coordinates.

        Raises:
            UserError: a row that begins otherwise, or no patterns.
        """
        self._check(tokens, patterns)
        features: Tensor = tokens
        seen, steps, looked = [], [], []
        for layer in range(len(self.spec.blocks)):
            block = self.block(layer)
            if given is not None and layer in given:
                features = given[layer]
            looks = self._look(layer, features, explicit) if patterns is None else patterns[layer]
            step = block(features, looks)
            features = activate(step.pre, block.spec.k_out)
            seen.append(features)
            steps.append(step)
            looked.append(looks)
        return LayerRun(self.read_out(features), seen, steps, looked)

    def read_out(
        self, features: Float[Tensor, "batch pos features"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits from the last layer's features."""
        scale = (square(features, self.gram).clamp_min(0) + self.spec.eps).sqrt()
        return product(features, self.W_logits) / scale

    def block(self, layer: int) -> MatrixBlock | FeatureBlock:
        """One block."""
        found = self.blocks[layer]
        assert isinstance(found, MatrixBlock | FeatureBlock)
        return found

    def look(self, layer: int) -> FeaturePatterns:
        """Where one block's heads look, if that is made of features."""
        found = self.looks[layer]
        assert isinstance(found, FeaturePatterns)
        return found

    def save(self, folder: Path) -> None:
        """Write `spec.json` and `weights.safetensors` into a new folder, whole or not at all."""
        with new_folder(folder) as partial:
            save_tensors(partial / "weights.safetensors", self.state_dict())
            write_json(partial / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path, subject: Subject) -> "LayerNetwork":
        """Read what `save` wrote.

        Raises:
            UserError: a file that is missing or does not fit, or another subject.
        """
        network = cls(spec_in(folder, LayersSpec, "a network of layers"), subject)
        forms = {
            name: TensorForm(tuple(tensor.shape), torch.float32)
            for name, tensor in network.state_dict().items()
        }
        network.load_state_dict(load_tensors(folder / "weights.safetensors", forms))
        return network

    def _look(self, layer: int, features: Tensor, explicit: bool) -> Tensor:
        looks = self.look(layer)
        make = looks.explicit if explicit else looks
        return make(features, self.block(layer).scale(features), self._scoring[layer])

    def _check(self, tokens: Tensor, patterns: Sequence[Tensor] | None) -> None:
        if bool((tokens[:, 0] != self.spec.start_token).any()):
            raise UserError(
                f"a network of layers reads rows that begin with the start token, "
                f"{self.spec.start_token}: put it first"
            )
        if patterns is None and not self.spec.patterns:
            raise UserError(
                "this network of layers has no query and key features: give the subject's "
                "patterns, or make it with patterns from features"
            )
