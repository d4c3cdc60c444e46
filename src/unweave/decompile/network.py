"""The decompiled network: the subject's skeleton with a sparse part in place of every block."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.activations.workers import twin_of
from unweave.decompile.generation import Output, joined
from unweave.dictionaries.kernels.sparse import Code
from unweave.dictionaries.part import Part
from unweave.subject import Subject
from unweave.subject.generation import continue_rows
from unweave.training.stand_in import AtStart, StandIn, stand_ins


class DecompiledNetwork(nn.Module):
    """A network that can stand where the original stood, with no error terms carried along.

    Embedding, norms and unembedding are the subject's; every MLP, every attention block's output
    and the queries and keys that make its pattern come from k latents each, where there is a part.
    What turns queries and keys into a pattern (rotary embedding, norms of heads, groups of heads,
    windows, softmax) is the subject's own code.

    ```python
    network = DecompiledNetwork(subject, parts)
    logits = network(tokens)  # [batch, pos, vocab]
    seen = network.step(tokens)  # .logits and .past_key_values, as Hugging Face models give them
    network.step(next_tokens, seen.past_key_values).logits  # of the new positions
    network.generate(tokens, max_new=20)
    ```

    `skeleton` is a Hugging Face model itself, `generate` included. Rows that run together have one
    length: a start token behind padding would be no start token.
    """

    def __init__(self, subject: Subject, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._at_start = AtStart()
        self._placed: dict[str, StandIn] = stand_ins(parts.values(), self._at_start)
        self.subject = twin_of(subject)
        """The subject's twin with the parts in place; its `run` sees the spliced sites."""
        self._swap = ExitStack()
        self._swap.enter_context(self.subject.swapped(self._placed))
        self.skeleton = self.subject.model
        self.skeleton.register_forward_pre_hook(self._note_start, with_kwargs=True)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the decompiled network; differentiable in the parts' weights."""
        logits = self.subject.run(tokens).logits
        assert logits is not None
        return logits

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "batch pos"], past_key_values: object = None) -> Output:
        """Go on after what a cache has seen, or begin; the cache is added to in place."""
        from unweave.subject.key_values import cache_argument, growing_cache

        cache = past_key_values
        cache = growing_cache(self.skeleton.config) if cache is None else cache
        run = cast(Callable, self.skeleton)
        logits = run(tokens, use_cache=True, **{cache_argument(self.skeleton): cache}).logits
        return Output(logits, cache)

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        max_new: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch more"]:
        """Every row and the `max_new` tokens that the network writes after it.

        Temperature 0 takes the likeliest token each time; above 0 samples, the same for the same
        seed.

        Raises:
            UserError: rows and continuations exceed the subject's context.
        """
        new = continue_rows(self.subject, tokens, max_new, temperature=temperature, seed=seed)
        return joined(tokens, new)

    def codes(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Code]:
        """Active latents of every part, rows flattened, in splice mode `propagated`."""
        with torch.inference_mode():
            self.subject.run(tokens, logits=True)
        codes = {name: stand.code for name, stand in self._placed.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def _note_start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        # With a key-value cache only the first call sees position 0.
        tokens = args[0] if args else kwargs.get("input_ids")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        seen = 0 if cache is None else cache.get_seq_length()
        start = self.subject.start_token
        first = tokens[:, 0] if isinstance(tokens, Tensor) else torch.empty(0)
        self._at_start.yes = seen == 0 and start is not None and bool((first == start).all())
