"""The public probes of SCR on our means of texts, many seeds: see `probe_seeds.py`."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

os.environ["JAXTYPING_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import sae_bench.evals.scr_and_tpp.main as scr
import sae_bench.evals.sparse_probing.probe_training as probing
import sae_bench.sae_bench_utils.dataset_info as info
import torch

SEEDS, N = range(24), (2, 5, 10, 20, 50, 100, 500)


def by_key(counts: list[int], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Texts under the names of the published pairs."""
    starts, size = [sum(counts[:i]) for i in range(4)], counts[1]

    def part(*places: int) -> torch.Tensor:
        return torch.cat([x[starts[i] : starts[i] + size] for i in places])

    return {
        "male / female": part(0, 2), "female_data_only": part(1, 3),
        "professor / nurse": part(0, 1), "nurse_data_only": part(2, 3),
        "male_professor / female_nurse": x[: counts[0]], "female_nurse_data_only": x[starts[3] :],
    }  # fmt: skip


def scores(kept: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    unit, classes = kept["unit"], list(info.PAIRED_CLASS_KEYS)
    train, test = (kept[f"{side}counts"].tolist() for side in ("train", "test"))
    probes, _ = probing.train_probe_on_activations(
        by_key(train, kept["trainsite"]), by_key(test, kept["testsite"]), select_top_k=None,
        use_sklearn=False, batch_size=16, epochs=20, lr=1e-3, perform_scr=True,
        early_stopping_patience=20, l1_penalty=1e-3,
    )  # fmt: skip
    torch.set_grad_enabled(False)
    clean = scr.get_probe_test_accuracy(
        probes, classes, by_key(test, kept["testsite"]), 500, perform_scr=True
    )
    changed: dict = {name: {} for name in classes}
    for name in classes:
        x, label = probing.prepare_probe_data(by_key(train, kept["trainlatents"]), name, True)
        apart = x[label == 1].mean(0) - x[label == 0].mean(0)
        effect = (apart * (probes[name].net.weight @ unit.T).squeeze()).abs()
        for n in N:
            out = scr.select_top_n_features(effect, n, name)
            gone = kept["testlatents"][:, out]
            gone = gone + kept["testpadding"][:, None] * kept["testat_zero"][out]
            left = by_key(test, kept["testsite"] - gone @ unit[out])
            changed[name][n] = scr.get_probe_test_accuracy(probes, classes, left, 500, True)
    return scr.get_scr_plotting_dict(changed, clean)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, found = Path(sys.argv[1]), []
    arrays = np.load(folder / "reviews.npz")
    kept = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for seed in SEEDS:
        with contextlib.redirect_stdout(io.StringIO()):
            found.append(scores(kept, seed))
    (folder / "reviews-public.json").write_text(json.dumps(found))
