"""The decompiled network run on virtual weights alone.

    pre_t = (1 / s(x)) sum over writers w on of a_w V[w, t] + c_t        s(x)^2 = a M a + eps

No vector of the residual stream exists at any point: tokens are writers, readers read strengths,
the norms' scales come from the Gram matrix, scores from pairs of features, logits from strengths.
`DecompiledNetwork` computes the same function in factored form, through decoder and encoder
matrices, which is faster; the two agree to rounding, and a test holds them to it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import silu

from unweave.decompile.explicit.active import Active, On, largest
from unweave.decompile.explicit.attention import Attention, attention_in_features
from unweave.decompile.explicit.kept import Kept
from unweave.decompile.explicit.pairs import Pairs
from unweave.decompile.explicit.virtual import LOGITS, VirtualWeights, derive
from unweave.decompile.explicit.writers import OFFSET, POSITIONS, START
from unweave.decompile.generation import Output, joined
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import KINDS, place_of
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.attending import logit_cap
from unweave.subject.generation import written_by


class ExplicitNetwork:
    """A decompiled network in explicit form.

    ```python
    network = ExplicitNetwork(subject, parts)
    logits = network(tokens)  # [batch, pos, vocab]
    seen = network.step(tokens)  # .logits and .past_key_values
    network.step(next_tokens, seen.past_key_values).logits  # of the new positions
    network.generate(tokens, max_new=20)
    ```

    Parts must replace what writes to the stream: `attn` and `mlp` of every layer. Where `q` or `k`
    has no part, everything on the stream is a query (key) feature: exact, and slow.
    """

    def __init__(self, subject: Subject, parts: Mapping[str, Part]) -> None:
        every = [f"L{n}.{kind}" for n in range(subject.n_layers) for kind in KINDS]
        wanted = [name for name in every if name in parts or place_of(name).writes_stream]
        if missing := [name for name in wanted if name not in parts]:
            raise UserError(
                f"the decompiled network of {subject.name} has no part {missing[0]} "
                f"({len(missing)} missing), so it does not run in features alone; decompile it "
                "whole"
            )
        own = {name: parts[name] for name in wanted}
        self.name, self.context = subject.name, subject.context
        self.layers, self.start_token = subject.n_layers, subject.start_token
        self.parallel, self.eps = subject.geometry.parallel, subject.norm_eps
        self.k = {name: part.spec.k for name, part in own.items()}
        self.weights: VirtualWeights = derive(subject, own)
        self.attention: list[Attention] = [
            attention_in_features(subject, own, self.weights.writers, layer)
            for layer in range(subject.n_layers)
        ]
        self.logit_cap = logit_cap(subject)

    @property
    def pairs(self) -> list[Pairs]:
        """Query features against key features, by layer."""
        return [one.pairs for one in self.attention]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits, from features alone."""
        return self.step(tokens).logits

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "batch pos"], past_key_values: Kept | None = None) -> Output:
        """Go on after what was kept, or begin; what is kept is added to in place.

        Raises:
            UserError: rows longer than the subject's context.
        """
        kept = Kept() if past_key_values is None else past_key_values
        return Output(self._logits(self._run(tokens, kept)).unflatten(0, tokens.shape), kept)

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        max_new: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch more"]:
        """Every row and the `max_new` tokens after it, as `DecompiledNetwork.generate`."""
        step = Stepper(self)
        return joined(tokens, written_by(step, tokens, max_new, temperature=temperature, seed=seed))

    def _run(self, tokens: Int[Tensor, "batch pos"], kept: Kept) -> Active:
        """Everything that is on at the end, at new positions."""
        if kept.seen + tokens.shape[1] > self.context:
            raise UserError(
                f"{kept.seen + tokens.shape[1]} tokens exceed the context of {self.name}, "
                f"{self.context}"
            )
        at_start = self._at_start(tokens, kept)
        active = self._tokens(tokens, kept.seen)
        for layer in range(self.layers):
            before = active
            name = f"L{layer}.attn"
            pre = self._attend(before, layer, at_start, kept)
            active = self._write(name, self._chosen(name, pre), active, at_start)
            name = f"L{layer}.mlp"
            on = self._read(before if self.parallel else active, name)
            active = self._write(name, on, active, at_start)
        kept.seen += tokens.shape[1]
        return active

    def _tokens(self, tokens: Int[Tensor, "batch pos"], seen: int) -> Active:
        """What is on before the first layer: a token at every position, and its position."""
        writer, gram = tokens.reshape(-1, 1), self.weights.gram
        one = torch.ones(writer.shape)
        active = Active(writer, one, gram.diagonal()[writer[:, 0]].double())
        if (first := self.weights.writers.first.get(POSITIONS)) is None:
            return active
        position = first + seen + torch.arange(tokens.shape[1]).expand(tokens.shape)
        return active.joined(position.reshape(-1, 1), one, gram)

    def _logits(self, active: Active) -> Float[Tensor, "rows vocab"]:
        logits = self._pre(active, LOGITS)
        return (
            logits if self.logit_cap is None else (logits / self.logit_cap).tanh() * self.logit_cap
        )

    def _at_start(self, tokens: Int[Tensor, "batch pos"], kept: Kept) -> Bool[Tensor, "batch pos"]:
        """Where a start token stands first in its row, if that is so in all rows."""
        first = torch.zeros(tokens.shape, dtype=torch.bool)
        if self.start_token is not None and not kept.seen:
            first[:, 0] = (tokens[:, 0] == self.start_token).all()
        return first

    def _pre(self, active: Active, name: str) -> Float[Tensor, "rows readers"]:
        return active.read(self.weights.reads[name], self.eps) + self.weights.offsets[name]

    def _read(self, active: Active, name: str) -> On:
        """The latents of a part that are on, from what is on before it."""
        pre = self._pre(active, name)
        if name not in self.weights.gates:
            return self._chosen(name, pre)
        reads, offset = self.weights.gates[name]
        value = silu(active.read(reads, self.eps) + offset) * pre.relu()
        return largest(value, self.k[name], by_size=True)

    def _chosen(self, name: str, pre: Float[Tensor, "rows latents"]) -> On:
        on = largest(pre, self.k[name])
        return on._replace(strength=on.strength.clamp_min(0))

    def _attend(
        self, active: Active, layer: int, at_start: Bool[Tensor, "batch pos"], kept: Kept
    ) -> Float[Tensor, "rows latents"]:
        """Pre-activations of attention latents: what they read at each source, moved and summed."""
        query, key = (
            On(*(t.unflatten(0, at_start.shape) for t in self._asked(active, name, at_start)))
            for name in (f"L{layer}.q", f"L{layer}.k")
        )
        patterns = self.attention[layer].pattern(query, kept.add_keys(layer, key))
        name = f"L{layer}.attn"
        read = active.read(self.weights.reads[name], self.eps).unflatten(0, at_start.shape)
        by_head = kept.add_reads(layer, read).unflatten(-1, (patterns.shape[1], -1))
        moved = torch.einsum("bhts,bshi->bthi", patterns, by_head)
        return moved.flatten(2).flatten(0, 1) + self.weights.offsets[name]

    def _asked(self, active: Active, name: str, at_start: Bool[Tensor, "batch pos"]) -> On:
        """Query (key) features that are on: a part's, or all that the stream is a sum of."""
        if name in self.k:
            on = self._read(active, name)
            return self._with_constants(name, on, at_start)
        strength = active.strength / active.scale(self.eps).float()[:, None]
        bias = self.weights.writers.before(f"L{place_of(name).layer}.attn")
        last = torch.full((len(strength), 1), bias)
        feature = torch.cat([active.writer, last], 1)
        return On(feature, torch.cat([strength, torch.ones(last.shape)], 1))

    def _with_constants(self, name: str, on: On, at_start: Bool[Tensor, "batch pos"]) -> On:
        """With the part's two constants; at a start token nothing else of it is on."""
        first = at_start.reshape(-1, 1)
        value = on.strength.masked_fill(first, 0.0)
        constants = torch.tensor([OFFSET, START]) + len(self.weights.offsets[name])
        latent = torch.cat([on.feature, constants.expand(len(value), -1)], 1)
        return On(latent, torch.cat([value, (~first).to(value), first.to(value)], 1))

    def _write(
        self, name: str, on: On, active: Active, at_start: Bool[Tensor, "batch pos"]
    ) -> Active:
        on = self._with_constants(name, on, at_start)
        strength = on.strength
        if name in self.weights.posts:
            square = on.square(self.weights.posts[name]).clamp_min(0)
            strength = strength / (square + self.eps).sqrt().float()[:, None]
        return active.joined(
            on.feature + self.weights.writers.first[name], strength, self.weights.gram
        )


class Stepper:
    """Writes with a network: logits of the next token, from the tokens that are new."""

    def __init__(self, network: ExplicitNetwork) -> None:
        self._network, self._kept = network, Kept()

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch vocab"]:
        """Logits behind the last token of each row."""
        network = self._network
        active = network._run(tokens, self._kept)
        return network._logits(Active(*(t.unflatten(0, tokens.shape)[:, -1] for t in active)))

    def keep(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some of the rows alone."""
        self._kept.batch_select_indices(rows)
