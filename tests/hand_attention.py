"""A two-layer attention network written by hand, whose heads and sources are known.

24 tokens, 32 positions. The stream has 24 dimensions for the token, 32 for the position and 24 for
a copy of the token before.

- 0.0 attends to the previous position and copies the token there into the last 24 dimensions;
- 0.1 attends to everything that is the same token, and moves nothing on;
- 1.0 attends to what follows an earlier copy of the current token (induction), moves that token;
- 1.1 attends to everything alike, and moves what 0.0 wrote there.
"""

import torch
import transformers
from torch import Tensor

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.subject import Subject, wrap_module

TOKENS, POSITIONS, HEAD = 24, 32, 40
WIDTH = 2 * TOKENS + POSITIONS
SHARP = 60.0


def hand_subject() -> Subject:
    """The network; token 1 starts rows."""
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=2, n_inner=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        stream = torch.eye(WIDTH)
        token, position, before = stream.split([TOKENS, POSITIONS, TOKENS])
        model.transformer.wte.weight.copy_(token)
        model.transformer.wpe.weight.copy_(position)
        q, k, v, out = (torch.zeros(2, 2, WIDTH, HEAD) for _ in range(4))
        slot = torch.eye(HEAD)
        q[0, 0] = position[1:].T @ slot[: POSITIONS - 1]  # position t asks for t - 1
        k[0, 0] = position.T @ slot[:POSITIONS]
        q[0, 1] = k[0, 1] = token.T @ slot[:TOKENS]
        q[1, 0] = token.T @ slot[:TOKENS]
        k[1, 0] = before.T @ slot[:TOKENS]
        v[:] = token.T @ slot[:TOKENS]
        v[1, 1] = before.T @ slot[:TOKENS]
        out[0, 0] = before.T @ slot[:TOKENS]
        out[1] = token.T @ slot[:TOKENS]
        q[1, 1] = 0
        for layer, block in enumerate(model.transformer.h):
            parts = [w[layer].movedim(0, 1).flatten(1) for w in (SHARP * q, k, v)]
            block.attn.c_attn.weight.copy_(torch.cat(parts, 1))
            block.attn.c_proj.weight.copy_(out[layer].transpose(1, 2).flatten(0, 1))
    return wrap_module(model, name="by hand")


def hand_dictionary(layer: int, reads: list[tuple[int, int]], bias: float = -0.1) -> Dictionary:
    """Latents that each read (and write) one head's token, given as (head, token)."""
    port = (Port(site=f"blocks.{layer}.attn.z", width=2 * HEAD),)
    spec = DictionarySpec(reads=port, writes=port, n_latents=len(reads), activation=ReLU())
    made = Dictionary(spec).requires_grad_(False).eval()
    for latent, (head, token) in enumerate(reads):
        made.encoder.W_enc[latent, head * HEAD + token] = 1.0
    made.encoder.b_enc.fill_(bias)
    made.W_dec.copy_(made.encoder.W_enc)
    return made


def repeated_rows(rows: int, half: int, *, seed: int = 0) -> Tensor:
    """The start token, then different tokens in random order, twice."""
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(TOKENS - 3, generator=g)[:half] + 3 for _ in range(rows)]
    once = torch.stack(drawn)
    return torch.cat([torch.ones(rows, 1, dtype=once.dtype), once, once], 1)
