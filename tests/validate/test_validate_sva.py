"""Sparse feature circuits where the nodes that matter are known."""

from pathlib import Path

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import tiny_llama
from torch import Tensor

from unweave.circuits.contrasts import Contrast
from unweave.circuits.latents import of_one_length
from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.subject import Subject, load_subject
from unweave.validate.placed import Placed
from unweave.validate.protocols.contrast_data import CircuitTask
from unweave.validate.protocols.protocol import Bench, Outcome, Refused
from unweave.validate.protocols.sva import AgreementTask, SvaSettings, agreement_tasks, sva, sva_on

LAST = "blocks.1.resid_post"
SETTINGS = SvaSettings(train=16, test=16, steps=4, nodes=(1, 2, 5, 10), shown=(2, 10), batch=16)


def done_by(subject: Subject, count: int, seed: int) -> list[Contrast]:
    """Pairs of one length whose right answer is one of two tokens, whichever the subject says."""
    some = list(of_one_length(contrasts(12 * count, 64, seed=seed)))
    rows = torch.tensor([side for c in some for side in (c.clean, c.corrupt)])
    logits = subject.run(rows).logits[:, -1]
    found = []
    for at, one in enumerate(some):
        clean, corrupt = (logits[2 * at + side, 5] - logits[2 * at + side, 6] for side in (0, 1))
        for right, wrong, sign in ((5, 6, 1), (6, 5, -1)):
            if sign * clean > 0.3 and sign * (clean - corrupt) > 0.3:
                found.append(one._replace(right=(right,), wrong=(wrong,)))
    assert len(found) >= count
    return found[:count]


def task(subject: Subject) -> AgreementTask:
    sides = (CircuitTask("made", tuple(done_by(subject, 16, seed)), 0) for seed in (0, 1))
    return AgreementTask("made", *sides)


def basis(subject: Subject) -> Tensor:
    """An orthonormal basis whose first vector is what the two answers read at the last site."""
    unembed = subject.unembed()
    first = (unembed[5] - unembed[6]).double()
    rest = torch.randn(32, 31, generator=torch.Generator().manual_seed(0)).double()
    return torch.linalg.qr(torch.cat([first[:, None], rest], 1))[0].T.float()


def ran(store: Path, rows: Tensor, subject: Subject, one: AgreementTask) -> Outcome:
    zero = torch.zeros(32)
    coder = Coefficients(read_by(rows, zero), rows, b_dec=zero)
    standing = Placed("basis", coder, (LAST,), (LAST,))
    return sva_on(Bench(subject, standing, store), [standing], [one], SETTINGS)


def test_a_dictionary_with_the_direction_that_is_read_has_a_circuit_of_few_nodes(
    tmp_path: Path,
) -> None:
    subject = tiny_llama()
    one = task(subject)
    outcome = ran(tmp_path / "good", basis(subject), subject, one)
    number, control = outcome.numbers, outcome.controls
    assert number["faithfulness_2"].value > 0.7
    assert number["completeness_2"].value < 0.3
    assert number["faithfulness_2_neurons"].value < number["faithfulness_2"].value - 0.2
    assert control["faithfulness_2_random_nodes"].value < 0.3
    assert control["completeness_2_random_nodes"].value > 0.7
    # What a random dictionary does not explain is one node a position, and does it all.
    assert control["faithfulness_2_random_dictionary"].value > 0.6
    assert control["faithfulness_2_random_dictionary_without_errors"].value < 0.5
    # The same directions but for that one: nothing to be found.
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    worse = ran(tmp_path / "bad", turned.contiguous(), subject, one).numbers
    assert worse["faithfulness_2"].value < number["faithfulness_2"].value - 0.2
    curve = outcome.details["by_task"]["made"]["curves"]["latents"]
    assert curve["nodes_for_half"] == 1
    effects = outcome.details["by_task"]["made"]["effects"]
    assert abs(effects["error"]) < 1e-3 * abs(effects["latents"])


def test_who_does_not_agree_is_refused(tmp_path: Path) -> None:
    subject = tiny_llama()
    neurons = Placed("neurons", coordinates(32), (LAST,), (LAST,))
    drawn = CircuitTask("drawn", tuple(contrasts(48, 64)), 0)
    bench = Bench(subject, neurons, tmp_path)
    with pytest.raises(Refused, match=r"drawn: the right answer .* \d+%"):
        sva_on(bench, [neurons], [AgreementTask("drawn", drawn, drawn)], SETTINGS)
    across = Placed("across", coordinates(32), ("blocks.0.mlp.in",), ("blocks.0.mlp.out",))
    with pytest.raises(Refused, match="across does not write"):
        sva_on(bench, [across], [task(subject)], SETTINGS)
    with pytest.raises(Refused, match="give the folder"):
        sva(bench)
    with pytest.raises(Refused, match="has no prompts"):
        sva_on(bench, [neurons], [], SETTINGS)


def test_wren_does_not_make_verbs_agree_well_enough(shared_data: Path, tmp_path: Path) -> None:
    wren = load_subject("wren")
    site = ("blocks.2.resid_post",)
    neurons = Placed("neurons", coordinates(wren.d_model), site, site)
    bench = Bench(wren, neurons, tmp_path, data=shared_data / "feature_circuits_sva")
    tasks = agreement_tasks(bench, bench.data, SETTINGS)
    assert [task.name for task in tasks] == ["simple", "nounpp", "within_rc"]
    assert all(len(task.test.contrasts) == 16 for task in tasks[1:])
    with pytest.raises(Refused, match="wren does not make verbs agree"):
        sva(bench, SETTINGS)
