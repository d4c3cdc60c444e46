"""The network run on virtual weights alone is the one run through decoders and encoders."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_subject import bump, tiny_llama, tiny_rows
from unweave.decompile.explicit.network import ExplicitNetwork, Stepper
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError
from unweave.subject.generation import written_by

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
    """Fails on any tensor of numbers, not of indices, with an axis as wide as the stream."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.int64:
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


@pytest.mark.parametrize("patterns", ["features", "own"])
def test_no_vector_of_the_stream_exists_while_it_runs_or_is_kept(patterns):
    subject = subject_of()
    parts = random_parts(subject)
    if patterns == "own":
        parts = {name: part for name, part in parts.items() if name[-1] not in "qk"}
    network, factored = ExplicitNetwork(subject, parts), DecompiledNetwork(subject, parts)
    rows = tiny_rows(3, 12)
    with NoStream():
        network(rows)
        past = network.step(rows[:, :9]).past_key_values
        for at in range(9, 12):
            network.step(rows[:, at : at + 1], past)
        network.generate(rows, max_new=3)
    assert past.seen == 12
    # Per position and layer 5 + 2 key features, numbers and strengths, and 24 reads.
    assert patterns == "own" or past.numbers == 3 * 12 * 2 * (2 * 7 + 24)
    for run in (factored, lambda rows: factored.step(rows[:, :1])):
        with pytest.raises(AssertionError, match="made"), NoStream(), torch.no_grad():
            run(rows)


def test_both_executions_write_the_same():
    subject = subject_of()
    parts = random_parts(subject)
    network, factored = ExplicitNetwork(subject, parts), DecompiledNetwork(subject, parts)
    rows = tiny_rows(3, 5)
    for temperature in (0.0, 1.0):
        how = {"max_new": 12, "temperature": temperature, "seed": 3}
        found = network.generate(rows, **how)
        assert torch.equal(found, factored.generate(rows, **how))
        assert len(set(found[:, 5:].flatten().tolist())) > 3
    assert not torch.equal(network.generate(rows, **how | {"seed": 4}), found)


def test_rows_that_end_leave_the_others_as_they_were():
    subject = subject_of()
    network = ExplicitNetwork(subject, random_parts(subject))
    rows = tiny_rows(3, 5)
    whole = network.generate(rows, max_new=8)[:, 5:].tolist()
    end = whole[0][2]
    some = written_by(Stepper(network), rows, 8, stop={end})
    assert some == [row[: row.index(end)] if end in row else row for row in whole]
    assert len(some[0]) < 8


def test_what_it_cannot_run_is_refused(monkeypatch):
    subject = subject_of()
    parts = random_parts(subject)
    with pytest.raises(UserError, match=r"no part L1\.mlp"):
        ExplicitNetwork(subject, {n: p for n, p in parts.items() if n != "L1.mlp"})
    skip = random_parts(subject, skip=True)
    with pytest.raises(UserError, match="dense linear map"):
        ExplicitNetwork(subject, parts | {"L0.mlp": skip["L0.mlp"]})
    with pytest.raises(UserError, match="exceed the context"):
        ExplicitNetwork(subject, parts)(tiny_rows(1, 65))
    monkeypatch.setattr("unweave.decompile.explicit.virtual.MOST_BYTES", 100_000)
    with pytest.raises(UserError, match="would take"):
        ExplicitNetwork(subject, parts)
