"""Parameter components: exact sums, exact masked runs, true read-outs, and files that hold."""

import json

import pytest
import torch
from torch import nn

from unweave.dictionaries.components.components import Components, start_components
from unweave.dictionaries.components.importance import Gates, lower_leaky, upper_leaky
from unweave.dictionaries.components.masked import (
    clean_run,
    draw_masks,
    masked_run,
    run_with_written,
    swapped,
)
from unweave.dictionaries.components.readouts import (
    alive_components,
    feature_shares,
    recovery,
    svd_pieces,
)
from unweave.errors import UserError


class Tiny(nn.Module):
    """Two linear layers of which the second has a bias, under dotted names."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, x):
        return self.body(x)


COUNTS = {"body.0": 9, "body.2": 6}
X = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target():
    return Tiny().requires_grad_(False)


@pytest.fixture
def components(target):
    return start_components(target, COUNTS, seed=3)


def make_faithful(target, components):
    """Pieces that read one input each and write that input's column; the rest write nothing."""
    for name, matrix in components.by_name().items():
        weight = target.get_submodule(name).weight
        with torch.no_grad():
            matrix.V.normal_(generator=torch.Generator().manual_seed(4))
            matrix.U.zero_()
            matrix.V[: weight.shape[1]] = torch.eye(weight.shape[1])
            matrix.U[: weight.shape[1]] = weight.T


def ones(components):
    return {n: torch.ones(1, m.spec.n_components) for n, m in components.by_name().items()}


def test_components_that_sum_to_the_weights_are_faithful_and_others_are_not(target, components):
    assert components.faithfulness(target) > 0.1
    make_faithful(target, components)
    assert components.faithfulness(target) == 0
    for name, matrix in components.by_name().items():
        assert torch.equal(matrix.weight(), target.get_submodule(name).weight)


def test_faithfulness_is_the_mean_over_all_parameters_of_all_matrices(target, components):
    make_faithful(target, components)
    with torch.no_grad():
        components.by_name()["body.2"].U[0, 0] += 1.0  # moves one weight by one
    assert components.faithfulness(target).item() == pytest.approx(1 / (5 * 4 + 4 * 3))


def test_all_masks_one_reproduces_the_target_and_a_mask_of_zero_does_not(target, components):
    make_faithful(target, components)
    whole = masked_run(target, components, X, ones(components))
    torch.testing.assert_close(whole, target(X), rtol=1e-6, atol=2e-6)  # sums in another order
    less = ones(components)
    less["body.0"] = less["body.0"].clone()
    less["body.0"][0, 0] = 0.0
    without = X.clone()
    without[:, 0] = 0.0  # the piece that is gone was input 0's column
    torch.testing.assert_close(masked_run(target, components, X, less), target(without))
    assert not torch.allclose(masked_run(target, components, X, less), target(X))


def test_no_pieces_at_all_leave_the_bias(target, components):
    masks = {name: 0 * mask for name, mask in ones(components).items()}
    out = masked_run(target, components, X, masks)
    assert torch.equal(out, target.get_submodule("body.2").bias.expand(7, 3))


def test_layers_without_a_mask_stay_original(target, components):
    alone = masked_run(target, components, X, {"body.0": ones(components)["body.0"]})
    hidden = (X @ components.by_name()["body.0"].weight().T).relu()
    torch.testing.assert_close(alone, target.get_submodule("body.2")(hidden))


def test_a_layer_given_what_it_writes_is_as_a_masked_one(target, components):
    clean = clean_run(target, components, X)
    matrix = components.by_name()["body.2"]
    mask = torch.rand(7, 6, generator=torch.Generator().manual_seed(5))
    written = matrix.written(matrix.inner(clean.inputs["body.2"]), mask)
    short = run_with_written(target, X, "body.2", written)
    torch.testing.assert_close(short, masked_run(target, components, X, {"body.2": mask}))


def test_a_clean_run_sees_each_layers_own_input_and_leaves_no_hook(target, components):
    clean = clean_run(target, components, X)
    assert torch.equal(clean.output, target(X))
    assert torch.equal(clean.inputs["body.0"], X)
    hidden = (X @ target.get_submodule("body.0").weight.T).relu()
    torch.testing.assert_close(clean.inputs["body.2"], hidden)
    assert not any(module._forward_pre_hooks for module in target.modules())


def test_a_run_that_fails_leaves_the_target_as_it_was(target, components):
    before = target(X)
    with pytest.raises((RuntimeError, TypeError)):
        masked_run(target, components, X, {"body.0": torch.ones(1, 2)})
    with pytest.raises(ZeroDivisionError), swapped(target, {"body.0": lambda a: 0 * a}):
        raise ZeroDivisionError
    assert torch.equal(target(X), before)


def test_masks_lie_between_the_importance_and_one(target, components):
    with torch.no_grad():
        for matrix in components.by_name().values():
            matrix.gates.b_out.copy_(torch.linspace(-2, 2, matrix.spec.n_components))
    found = components.importances(clean_run(target, components, X).inputs)
    for seed in range(20):
        masks = draw_masks(found, torch.Generator().manual_seed(seed))
        for name, mask in masks.items():
            assert (mask >= found[name].gate).all()
            assert (mask <= 1).all()
            assert (mask[found[name].raw >= 1] == 1).all()
    assert (found["body.0"].raw < 0).any()
    assert (found["body.0"].value >= 0).all()


def test_a_shut_gates_mask_is_uniform(target, components):
    with torch.no_grad():
        for matrix in components.by_name().values():
            matrix.gates.W_out.zero_()
    found = components.importances(clean_run(target, components, torch.zeros(4000, 5)).inputs)
    mask = draw_masks(found, torch.Generator().manual_seed(0))["body.0"]
    assert mask.mean().item() == pytest.approx(0.5, abs=0.01)
    assert mask.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_the_leaky_sigmoids_by_hand():
    raw = torch.tensor([-2.0, 0.0, 0.3, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    low, high = lower_leaky(raw), upper_leaky(raw)
    torch.testing.assert_close(low, low.new_tensor([-0.02, 0, 0.3, 1, 1]))
    torch.testing.assert_close(high, high.new_tensor([0, 0, 0.3, 1, 1.02]))
    inside = torch.tensor([0, 2, 4])
    slope_low = torch.autograd.grad(low.sum(), raw)[0][inside]
    slope_high = torch.autograd.grad(high.sum(), raw)[0][inside]
    torch.testing.assert_close(slope_low, low.new_tensor([0.01, 1, 0]))
    torch.testing.assert_close(slope_high, high.new_tensor([0, 1, 0.01]))


def test_a_gate_reads_its_own_piece_alone_and_is_the_stated_mlp():
    gates = Gates(3, 16)
    gates.start_(torch.Generator().manual_seed(0))
    with torch.no_grad():
        gates.b_in.normal_(generator=torch.Generator().manual_seed(1))
        gates.b_out.normal_(generator=torch.Generator().manual_seed(2))
    h = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    raw = gates(h)
    for piece in range(3):
        hidden = nn.functional.gelu(h[..., piece, None] * gates.W_in[piece] + gates.b_in[piece])
        want = hidden @ gates.W_out[piece] + gates.b_out[piece]
        torch.testing.assert_close(raw[..., piece], want)


def planted(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 8, generator=generator)
    return weight, weight.T.contiguous(), torch.eye(8)


def test_one_piece_a_column_is_full_recovery_in_any_order_and_beside_silent_pieces():
    weight, U, V = planted()
    assert recovery(U, V, weight) == pytest.approx((1.0, 1.0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    silent = torch.zeros(5, 6), torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    U, V = torch.cat([silent[0], -2 * U[order]]), torch.cat([silent[1], -0.5 * V[order]])
    assert recovery(U, V, weight) == pytest.approx((1.0, 1.0))


def test_shrunk_and_split_pieces_show_in_length_alone():
    weight, U, V = planted()
    assert recovery(0.9 * U, V, weight) == pytest.approx((1.0, 0.9))
    split = torch.cat([0.7 * U, 0.3 * U]), torch.cat([V, V])
    mmcs, ml2r = recovery(*split, weight)
    assert mmcs == pytest.approx(1.0)
    assert ml2r < 0.75


def test_a_negative_reading_points_the_other_way():
    weight, U, V = planted()
    assert recovery(U, -V, weight).mmcs < 0.7


def test_the_svd_sums_to_the_weights_and_misses_their_columns():
    weight, _, _ = planted()
    U, V = svd_pieces(weight)
    torch.testing.assert_close(U.T @ V, weight)
    assert recovery(U, V, weight).mmcs < 0.9


def test_features_are_read_through_their_directions():
    weight, U, V = planted()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q
    turned = recovery(U, V @ rotation, weight @ rotation, features=rotation.T.contiguous())
    assert turned.mmcs < 0.9  # rows of `features` are the directions, so its transpose is wrong
    right = recovery(U, V @ rotation, weight @ rotation, features=rotation)
    assert right == pytest.approx((1.0, 1.0), abs=1e-5)


def test_pieces_that_are_not_alive_are_left_out():
    weight, U, V = planted()
    alive = torch.tensor([True] * 7 + [False])
    assert recovery(U, V, weight, alive=alive).mmcs < 1.0
    assert recovery(U, V, weight, alive=torch.zeros(8, dtype=torch.bool)) == (0.0, 0.0)


def test_alive_and_shared_pieces_are_counted():
    importance = torch.tensor([[0.9, 0.0, 0.05, 0.5], [0.0, 0.8, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert alive_components(importance).tolist() == [True, True, False, True]
    shares = feature_shares(importance)
    assert shares.one_feature == 2
    assert shares.owned == 0  # the fourth piece serves both features as well
    assert shares.mean_features == pytest.approx(4 / 3)
    assert feature_shares(importance[:, :3]).owned == 2


def test_saved_components_come_back_bit_for_bit(components, tmp_path):
    components.save(tmp_path)
    again = Components.load(tmp_path)
    assert again.spec == components.spec
    for name, tensor in components.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_files_that_do_not_fit_are_refused_by_name(components, tmp_path):
    with pytest.raises(UserError, match=r"No spec\.json"):
        Components.load(tmp_path)
    components.save(tmp_path)
    spec = json.loads((tmp_path / "spec.json").read_text())
    spec["matrices"][0]["n_components"] = 8
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"matrices\.0.* has shape"):
        Components.load(tmp_path)
    (tmp_path / "spec.json").write_text('{"kind": "components", "matrices": []}')
    with pytest.raises(UserError, match="parameter components"):
        Components.load(tmp_path)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(target):
    with pytest.raises(UserError, match=r"'body\.1'.*body\.0, body\.2"):
        start_components(target, {"body.1": 4}, seed=0)
