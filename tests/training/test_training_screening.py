"""Latents screened by what is likely: exact scores, few misses where vectors fall into kinds."""

import pytest
import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.screening import Screen
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

D, N, K, ROWS, STEPS, KINDS = 24, 96, 3, 128, 24, 4
SCREEN = Screen(clusters=KINDS, share=0.25, every=4, begin=0.3)


def vectors(rows: int = 1024) -> torch.Tensor:
    """Of four kinds, each with a mean and twelve directions of its own."""
    generator = torch.Generator().manual_seed(1)
    means = 6 * torch.nn.functional.normalize(torch.randn(KINDS, D, generator=generator), dim=1)
    atoms = torch.nn.functional.normalize(torch.randn(KINDS, 12, D, generator=generator), dim=2)
    kind = torch.randint(KINDS, (rows,), generator=generator)
    active = torch.rand(rows, 12, generator=generator) < 0.25
    return means[kind] + torch.einsum("rn,rnd->rd", active * 2.0, atoms[kind])


def made(screen: Screen | None = SCREEN) -> Trainee:
    torch.manual_seed(0)
    dictionary = Dictionary(autoencoder("s", D, N, TopK(k=K)))
    settings = TraineeSettings(screen=screen, lr=5e-3)
    return Trainee({"d": dictionary}, settings, steps=STEPS, batch=ROWS, seed=3)


def source() -> ArraySource:
    return ArraySource({"s": vectors()}, batch=ROWS, steps=STEPS, seed=5)


def recall(trainee: Trainee, likely: torch.Tensor, x: torch.Tensor) -> float:
    """Share of the truly best latents that a screened step could choose."""
    screening, dictionary = trainee._screening["d"], trainee.dictionaries["d"]
    screening._likely = likely
    scorer = screening._screened(dictionary.encoder.scorer(torch.float32))
    left = scorer(x) > -torch.inf
    best = torch.addmm(dictionary.b_enc, x, dictionary.W_enc.T).topk(K, dim=1)
    return float(left.gather(1, best.indices)[best.values > 0].float().mean())


def test_what_is_likely_is_nearly_all_that_is_chosen_where_there_are_kinds():
    trainee = made()
    train([trainee], source())
    x = (vectors() * trainee.dictionaries["d"].input_scale).detach()
    likely = trainee._screening["d"]._likely.clone()
    with torch.no_grad():
        assert recall(trainee, likely, x) > 0.95
        anywhere = torch.rand(KINDS, N).argsort(1)[:, : N // 4].sort(1).values
        assert recall(trainee, anywhere, x) < 0.6, "the control: as many latents, any of them"


def test_a_screened_step_takes_the_best_of_what_is_likely_by_exact_scores():
    trainee, batches = made(), source()
    trainee.begin(batches.at(0))
    for step in range(9):
        trainee.step(batches.at(step))
    dictionary, screening = trainee.dictionaries["d"], trainee._screening["d"]
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    likely, batch = screening._likely.clone(), batches.at(9)
    code = trainee.step(batch).watched["d"].passed.code
    assert dictionary.encoder.screen is None, "only within the step"
    x = batch.vectors["s"] * dictionary.input_scale
    pre = x @ before["encoder.W_enc"].T + before["encoder.b_enc"]
    at = (x[:, None] - screening._centres).norm(dim=2).argmin(1)
    allowed = torch.full_like(pre, -torch.inf).scatter_(1, likely[at], 0.0)
    chosen = pre.gather(1, code.support.latent.view(-1, K))
    best = (pre + allowed).topk(K, dim=1).values
    torch.testing.assert_close(chosen.sort(1, descending=True).values, best, rtol=0.02, atol=0.05)
    assert not torch.allclose(best, pre.topk(K, dim=1).values), "the control: something was missed"


def test_steps_that_choose_among_all_are_as_they_were():
    screened, plain = made(), made(None)
    batches = source()
    for trainee in (screened, plain):
        trainee.begin(batches.at(0))
    for step in range(STEPS):
        for trainee in (screened, plain):
            trainee.step(batches.at(step))
        same = torch.equal(screened.dictionaries["d"].W_dec, plain.dictionaries["d"].W_dec)
        assert same == (step <= 8), step  # .3 of 24 steps and step 8, of which there are four


def test_a_cut_run_resumes_to_the_same_bits(tmp_path):
    whole = made()
    settings = TrainSettings(log_every=5, checkpoint_seconds=0)
    train([whole], source(), settings=settings)
    batches = source()
    at = batches.at

    def breaking(step: int) -> VectorBatch:
        if step == 17:
            raise KeyboardInterrupt
        return at(step)

    batches.at = breaking
    with pytest.raises(KeyboardInterrupt):
        train([made()], batches, settings=settings, folder=tmp_path)
    resumed = made()
    train([resumed], source(), settings=settings, folder=tmp_path)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert "screen.d.worth" in whole.state()


def test_only_topk_is_screened():
    dictionary = Dictionary(autoencoder("s", D, N, BatchTopK(k=K)))
    with pytest.raises(UserError, match="screened for topk"):
        Trainee({"d": dictionary}, TraineeSettings(screen=SCREEN), steps=STEPS, batch=ROWS)
