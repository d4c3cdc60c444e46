"""The joint stage: the same bits whatever happens, the true gradient, and a network that gains."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows
from torch import nn

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts
from unweave.training.joint import JointSettings, _MeanKL, kl_per_token, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.schedule import linear_decay
from unweave.training.stand_in import AtStart, stand_ins

ROWS = tiny_rows(40, 16, seed=2)
SETTINGS = JointSettings(tokens=8 * 64, micro_rows=2, micro_batches=2, lr=1e-2)
STEPS = 8


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def started(subject):
    from unweave.pipeline.fitting import part_specs

    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, skip=True)
    with Workers(1) as workers:
        parts, _ = fit_parts(
            subject, specs, ROWS, workers=workers, seed=0, settings=LocalSettings(batch=200)
        )
    return parts


def tune(subject, started, *, threads=1, settings=SETTINGS, tokens=ROWS, **rest):
    parts = copy.deepcopy(started)
    with Workers(threads) as workers:
        metrics = tune_jointly(
            subject, parts, tokens, workers=workers, seed=3, settings=settings, **rest
        )
    return parts, metrics


@pytest.fixture(scope="module")
def whole(subject, started):
    return tune(subject, started)


def same_bits(parts, others):
    assert parts.keys() == others.keys()
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, others[name].state_dict()[key]), f"{name} {key}"


class CutOff(Exception):
    """Stands for the plug being pulled."""


class CutAfter:
    """Progress that pulls the plug at the n-th report of work done."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    @contextmanager
    def task(self, title, *, total, unit):
        def advance(amount):
            self.left -= 1
            if self.left < 0:
                raise CutOff

        yield advance

    def say(self, line):
        pass


def test_the_number_of_workers_changes_no_bit(subject, started, whole):
    parts, metrics = tune(subject, started, threads=2)
    same_bits(parts, whole[0])
    assert metrics == whole[1]


@pytest.mark.parametrize("cut", [2, 6])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(subject, started, whole, tmp_path, cut):
    with pytest.raises(CutOff):
        tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(cut))
    assert Checkpoints(tmp_path).latest().done == cut - 1
    parts, metrics = tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0))
    same_bits(parts, whole[0])
    assert metrics == whole[1]


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(subject, started, whole, tmp_path):
    with pytest.raises(CutOff):
        tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(6))
    done = {
        slot: json.loads((slot / "state.json").read_text())["done"] for slot in tmp_path.iterdir()
    }
    newest = max(done, key=done.get)
    (newest / "state.json").unlink()
    next(newest.glob("*.safetensors")).write_bytes(b"torn")
    same_bits(tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0))[0], whole[0])


def propagated_kl(subject, parts, rows):
    with torch.no_grad():
        before = subject.run(rows).logits
        with subject.swapped(stand_ins(parts.values(), AtStart())):
            after = subject.run(rows).logits
    return kl_per_token(before[:, 1:], after[:, 1:]).mean().item()


def test_the_network_comes_nearer_to_the_original_on_text_not_seen(subject, started):
    settings = SETTINGS.model_copy(update={"tokens": 60 * 64, "lr": 5e-3})
    parts, metrics = tune(subject, started, settings=settings)
    unseen = tiny_rows(30, 16, seed=50)
    assert propagated_kl(subject, parts, unseen) < 0.9 * propagated_kl(subject, started, unseen)
    assert len(metrics) == 60
    for part in parts.values():
        torch.testing.assert_close(part.W_dec.norm(dim=1), torch.ones(part.spec.n_latents))
        assert torch.equal(part.start_output, started[part.spec.name].start_output)
        assert all(parameter.grad is None for parameter in part.parameters())


def test_no_tokens_leave_the_parts_as_they_are(subject, started):
    parts, metrics = tune(subject, started, settings=SETTINGS.model_copy(update={"tokens": 0}))
    same_bits(parts, started)
    assert metrics == []


def test_steps_with_no_part_in_place_are_survived(subject, started):
    """A random half of one part is often none."""
    one = {"L0.mlp": started["L0.mlp"]}
    settings = SETTINGS.model_copy(update={"everything_share": 0.0, "micro_batches": 1})
    _, metrics = tune(subject, one, settings=settings.model_copy(update={"tokens": 12 * 32}))
    exact = [line for line in metrics if line["kl"] < 1e-9]
    assert 0 < len(exact) < len(metrics)


class DensePart(nn.Module):
    """A part written out densely in plain autograd operations."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.spec, self.start_output = part.spec, part.start_output
        for name, parameter in part.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    def forward(self, x):
        spec = self.spec
        rows = x * spec.input_scale
        slices = rows.unflatten(-1, (spec.heads, spec.d_read))
        encoders = self.W_enc.view(spec.heads, -1, spec.d_read)
        pre = torch.einsum("bphd,hnd->bphn", slices, encoders).flatten(-2) + self.b_enc
        keep = torch.zeros_like(pre).scatter(-1, pre.topk(spec.k, dim=-1).indices, 1.0)
        total = (pre.relu() * keep) @ self.W_dec + self.b_dec
        if "W_skip" in self._parameters:
            total = total + rows @ self.W_skip.T
        y = total / spec.output_scale
        return torch.cat([self.start_output.expand(len(y), 1, -1), y[:, 1:]], dim=1)


def test_steps_are_adam_on_the_gradient_of_the_stated_loss(subject, started, monkeypatch):
    """One row of text, so that every draw is that row; three steps with all parts in place."""
    monkeypatch.setattr("unweave.dictionaries.part.product_dtype", lambda: torch.float32)
    row = tiny_rows(1, 16, seed=4)
    settings = JointSettings(
        tokens=3 * 32, micro_rows=2, micro_batches=1, lr=1e-3, everything_share=1.0, clip=0.5,
        stream_weight=0.7,
    )  # fmt: skip
    parts, metrics = tune(subject, started, settings=settings, tokens=row)

    dense = {name: DensePart(part) for name, part in started.items()}
    weights = [p for part in dense.values() for p in part.parameters()]
    adam = torch.optim.Adam(weights, lr=1.0)
    streams = ["blocks.0.resid_post", "blocks.1.resid_post"]
    original = subject.run(row, capture=streams)
    for step in range(3):
        with subject.swapped(dense):
            spliced = subject.run(row, capture=streams)
        p = original.logits[0, 1:].log_softmax(-1)
        q = spliced.logits[0, 1:].log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean()
        gaps = [
            ((spliced.sites[s] - original.sites[s])[0, 1:].square().sum(-1)
            / original.sites[s][0, 1:].square().sum(-1)).mean()
            for s in streams
        ]  # fmt: skip
        stream = sum(gaps) / 2
        assert metrics[step]["kl"] == pytest.approx(kl.item(), rel=1e-3)
        assert metrics[step]["stream"] == pytest.approx(stream.item(), rel=1e-3)
        adam.zero_grad()
        (kl + 0.7 * stream).backward()
        assert nn.utils.clip_grad_norm_(weights, 0.5) > 0.5  # so the limit was at work
        adam.param_groups[0]["lr"] = 1e-3 * linear_decay(step, 3)
        adam.step()
        with torch.no_grad():
            for part in dense.values():
                part.W_dec /= part.W_dec.norm(dim=1, keepdim=True)
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            moved = parameter - started[name].get_parameter(key)
            wanted = dense[name].get_parameter(key) - started[name].get_parameter(key)
            assert wanted.abs().max() > 1e-4
            error = (moved - wanted).norm() / wanted.norm()
            assert error < 0.02, f"{name} {key}: {error}"


def test_kl_is_zero_for_equal_logits_and_right_by_hand():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        kl_per_token(logits, logits + 3.0), torch.zeros(3), atol=1e-6, rtol=0
    )
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.25, 0.75]])
    want = 0.5 * torch.log(torch.tensor([3.0]))
    torch.testing.assert_close(kl_per_token(p.log(), q.log()), want)


def test_the_mean_kl_taken_in_pieces_has_autograd_s_value_and_gradient():
    """More positions than are compared at once; the first one counts for nothing."""
    generator = torch.Generator().manual_seed(0)
    original, spliced = (torch.randn(2, 40, 7, generator=generator) for _ in range(2))
    spliced.requires_grad_()
    want = kl_per_token(original[:, 1:], spliced[:, 1:]).mean()
    (gradient,) = torch.autograd.grad(3 * want, spliced)
    found = _MeanKL.apply(spliced, original)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(3 * found, spliced)[0], gradient)
    assert not gradient[:, 0].any()
    assert gradient[:, 39].any()
