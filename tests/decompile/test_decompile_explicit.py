"""The network run on virtual weights alone is the one run through decoders and encoders."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_subject import bump, tiny_llama, tiny_rows
from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError

WIDTH = 44
"""Of the stream: no other size of these networks is the same, so that it can be forbidden."""


def subject_of(**changes):
    return tiny_llama(hidden_size=WIDTH, head_dim=10, vocab_size=64, **changes)


def random_parts(subject, *, seed=0, **changes):
    parts = {}
    for layer in range(subject.n_layers):
        attn, heads, kv = f"blocks.{layer}.attn", subject.n_heads, subject.n_kv_heads
        d = subject.d_head
        forms = {
            "q": (f"{attn}.in", f"{attn}.q", WIDTH, heads * d, 1),
            "k": (f"{attn}.in", f"{attn}.k", WIDTH, kv * d, 1),
            "attn": (f"{attn}.z", f"{attn}.out", heads * d, WIDTH, heads),
            "mlp": (f"blocks.{layer}.mlp.in", f"blocks.{layer}.mlp.out", WIDTH, WIDTH, 1),
        }
        for kind, (reads, writes, d_in, d_out, split) in forms.items():
            name = f"L{layer}.{kind}"
            spec = PartSpec(
                name=name, input_site=reads, output_site=writes, d_in=d_in, d_out=d_out,
                n_latents=24, k=5, heads=split, input_scale=0.9, output_scale=1.3, **changes,
            )  # fmt: skip
            parts[name] = bump(Part(spec), 0.4, seed=seed + len(parts))
            parts[name].start_output.normal_(generator=torch.Generator().manual_seed(layer))
    return parts


class NoStream(TorchDispatchMode):
    """Fails on any tensor with an axis as wide as the stream."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                assert WIDTH not in tensor.shape, f"{func} made {tuple(tensor.shape)}"
        return out


@pytest.mark.parametrize("first", ["start", "other"])
def test_both_executions_agree(first):
    subject = subject_of()
    parts = random_parts(subject)
    rows = tiny_rows(3, 16)
    if first == "other":
        rows[1, 0] = 5  # then no row's first position is a constant
    factored = DecompiledNetwork(subject, parts)
    with torch.no_grad():
        wanted = factored(rows)
    found = ExplicitNetwork(subject, parts)(rows)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    # The test can fail: another network is another function.
    other = ExplicitNetwork(subject, random_parts(subject, seed=50))(rows)
    assert not torch.allclose(other, wanted, atol=1e-2)


def test_no_vector_of_the_stream_exists_while_it_runs():
    subject = subject_of()
    parts = random_parts(subject)
    network = ExplicitNetwork(subject, parts)
    rows = tiny_rows(2, 12)
    with NoStream():
        network(rows)
    with pytest.raises(AssertionError, match="made"), NoStream(), torch.no_grad():
        DecompiledNetwork(subject, parts)(rows)


def test_what_it_cannot_run_is_refused():
    subject = subject_of()
    parts = random_parts(subject)
    with pytest.raises(UserError, match=r"no part L1\.q"):
        ExplicitNetwork(subject, {n: p for n, p in parts.items() if n != "L1.q"})
    skip = random_parts(subject, skip=True)
    with pytest.raises(UserError, match="dense linear map"):
        ExplicitNetwork(subject, parts | {"L0.mlp": skip["L0.mlp"]})
