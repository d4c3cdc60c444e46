"""SCR and TPP: a latent that is the cue or the class, and latents that are both."""

import pytest
import torch
from word_world import bench_of, classes, crossed, reader, word_latents

from unweave.validate.labelled import Example, LabelledSet
from unweave.validate.protocols.ablation import AblationSettings, effects, strongest
from unweave.validate.protocols.pooling import Pooled
from unweave.validate.protocols.probes import Probe, Task, TrainedProbeSettings
from unweave.validate.protocols.protocol import Refused
from unweave.validate.protocols.scr import Crossed, corner_size, scr, scr_scores
from unweave.validate.protocols.tpp import tpp

SMALL = AblationSettings(train=240, test=120, n=(2, 4))


def test_effects_by_hand():
    pooled = Pooled(
        torch.zeros(4, 2), torch.tensor([[3.0, 0, 1], [1, 0, 1], [0, 4, 1], [0, 0, 1]]),
        torch.zeros(4, 3), torch.zeros(3), torch.zeros(4),
    )  # fmt: skip
    task = Task(torch.tensor([0, 2, 1, 3]), torch.tensor([True, False, True, False]))
    unit = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    probe = Probe(torch.tensor([2.0, -3.0]), torch.tensor(0.0))
    # means: yes (2, 0, 1), no (0, 2, 1); W_dec . w = (2, -3, -1.2)
    size = effects(pooled, task, probe, unit, signed=False)
    torch.testing.assert_close(size, torch.tensor([4.0, 6.0, 0.0]))
    signed = effects(pooled, task, probe, unit, signed=True)
    torch.testing.assert_close(signed, torch.tensor([4.0, 0.0, 0.0]))
    assert strongest(size, 1).tolist() == [1]
    assert sorted(strongest(size, 3).tolist()) == [0, 1]


def test_taking_out_the_cues_latents_frees_the_biased_probe(tmp_path):
    subject, data = reader(), crossed(150)
    found = scr(bench_of(subject, word_latents(subject), tmp_path, data), SMALL)
    assert next(iter(found.numbers)) == "scr_metric_threshold_2"
    assert found.numbers["scr_metric_threshold_2"].value > 0.8
    assert abs(found.controls["random_latents_scr_metric_threshold_2"].value) < 0.4
    assert found.numbers["accuracy_both_on_label"].value < 0.95


def test_latents_that_hold_label_and_cue_at_once_free_nothing(tmp_path):
    subject, data = reader(), crossed(150)
    both = word_latents(subject, [[10, 20], [11, 21]])
    found = scr(bench_of(subject, both, tmp_path, data), SMALL)
    assert found.numbers["scr_metric_threshold_2"].value < 0.4


def test_the_reported_direction_is_the_one_that_starts_worse():
    """Three columns: label, cue (twice as strong, so the biased probe goes by it), nothing."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for size in (60, 60):
        rows = []
        for label, cue, count in (
            (1, 1, 2 * size),
            (1, -1, size),
            (-1, 1, size),
            (-1, -1, 2 * size),
        ):
            rows.append(torch.tensor([[label, 3.0 * cue, 0.0]]).repeat(count, 1))
        site = torch.cat(rows) + 0.3 * torch.randn(6 * size, 3, generator=generator)
        latents = torch.cat([site.clamp_min(0), (-site).clamp_min(0)], 1)
        pooled = Pooled(site, latents, latents, torch.zeros(6), torch.zeros(len(site)))
        sides.append(Crossed([pooled, pooled], (2 * size, size, size, 2 * size)))
    unit = torch.cat([torch.eye(3), -torch.eye(3)])
    found = scr_scores(sides[0], sides[1], [unit, unit], SMALL, 0)
    assert found["accuracy_both_on_label"] < found["accuracy_both_on_cue"]
    assert found["scr_metric_threshold_2"] == found["scr_dir1_threshold_2"] > 0.9
    assert found["direction_scr_metric_threshold_1"] > 0.5
    assert found["scr_dir2_threshold_2"] <= 0.0


def test_biased_corners_give_twice_as_many_texts():
    corner = [[""] * 9, [""] * 9, [""] * 5, [""] * 30]
    assert corner_size(corner, 100) == 4
    assert corner_size(corner, 3) == 3


def test_scr_is_refused_without_a_cue_and_where_the_cue_is_nothing(tmp_path):
    subject = reader()
    one = word_latents(subject)
    with pytest.raises(Refused, match="label and cue"):
        scr(bench_of(subject, one, tmp_path / "a", classes(30)), SMALL)
    sides = [
        tuple(Example(e.text, e.label, "ab"[place % 2]) for place, e in enumerate(side))
        for side in classes(80, ("w10", "w11"))[1:]
    ]
    blind = LabelledSet("blind", sides[0], sides[1])
    with pytest.raises(Refused, match="no correlation"):
        scr(bench_of(subject, one, tmp_path / "b", blind), SMALL)


def test_a_latent_a_class_is_targeted_and_one_for_two_classes_is_not(tmp_path):
    subject, data = reader(), classes(120)
    quick = TrainedProbeSettings(lr=1e-2)
    settings = AblationSettings(train=160, test=160, n=(2,), probe=quick)
    good = tpp(bench_of(subject, word_latents(subject), tmp_path / "a", data), settings)
    assert next(iter(good.numbers)) == "tpp_threshold_2_total_metric"
    assert good.numbers["accuracy_clean"].value > 0.85
    score = good.numbers["tpp_threshold_2_total_metric"].value
    assert score > 0.2
    assert abs(good.controls["random_latents_tpp_threshold_2_total_metric"].value) < 0.1
    shared = word_latents(subject, [[10, 11, 12]])
    bad = tpp(bench_of(subject, shared, tmp_path / "b", data), settings)
    assert bad.numbers["tpp_threshold_2_total_metric"].value < score / 3
    with pytest.raises(Refused, match="three labels"):
        tpp(bench_of(subject, shared, tmp_path / "c", classes(20, ("w10", "w11"))), settings)
