"""The public implementation of absorption (sae-bench 0.6.0) on the vectors that ours was given.

    ENV/bin/python studies/sae_bench/public_absorption.py WORDS DICTIONARY --out FILE [--seeds 2]

WORDS is the folder with words.safetensors and words.json of others.py, DICTIONARY the weights that
inputs.py writes. The model is not run: where the public code asks it for the site's vectors of a
prompt, it gets those of the prompt's word. Probes, latents and absorption are computed by theirs.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import sae_bench.evals.absorption.common as shared
import torch
from public import LAYER, Sparse
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.feature_absorption import run_feature_absortion_experiment
from sae_bench.evals.absorption.k_sparse_probing import run_k_sparse_probing_experiment
from sae_bench.evals.absorption.main import _aggregate_results_df
from safetensors.torch import load_file


class Told:
    """Answers like the model would, from the vectors of words."""

    def __init__(self, words: list[str], x: torch.Tensor, config: AbsorptionEvalConfig) -> None:
        self.known = dict(zip(words, x, strict=True))
        self.cfg = SimpleNamespace(model_name="told", d_model=x.shape[1])
        self.tokenizer = SimpleNamespace(
            vocab={word: at for at, word in enumerate(words)},
            convert_tokens_to_string=lambda tokens: tokens[0],
        )
        self.ending = config.prompt_template.removeprefix("{word}")

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple:
        asked = [prompt.split("\n")[-1].removesuffix(self.ending) for prompt in prompts]
        acts = torch.zeros(len(prompts), 6, self.cfg.d_model)
        acts[:, 0] = torch.stack([self.known[word] for word in asked])
        return None, {names_filter[0]: acts}

    def to_tokens(self, text: str) -> torch.Tensor:
        return torch.zeros(1, 6)


def stand_in(words: list[str], letters: list[int], x: torch.Tensor, cut: int) -> None:
    """The split and the vectors of ours in the place of theirs."""

    def collected(path: Path, **_: object) -> tuple:
        frames, vectors = [], []
        for part in (slice(cut), slice(cut, None)):
            frames.append(pd.DataFrame({"token": words[part], "answer_class": letters[part]}))
            vectors.append(x[part].numpy())
        path.mkdir(parents=True, exist_ok=True)
        for name, frame in zip(("train", "test"), frames, strict=True):
            frame.to_csv(path / f"{name}_df.csv", index=True)
        return *frames, *vectors

    shared.create_dataset_probe_training = lambda **_: (None, None)
    shared.gen_and_save_df_acts_probing = collected


def once(model: Told, sae: Sparse, config: AbsorptionEvalConfig, seed: int, work: Path) -> dict:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    given = {
        "model": model, "sae": sae, "layer": LAYER, "sae_name": "one", "device": "cpu",
        "max_k_value": config.max_k_value, "prompt_template": config.prompt_template,
        "prompt_token_pos": config.prompt_token_pos, "probes_dir": work / "probes",
    }  # fmt: skip
    sparse = run_k_sparse_probing_experiment(
        **given, experiment_dir=work / "sparse", f1_jump_threshold=config.f1_jump_threshold,
        precalc_k_sparse_probe_sae_acts=True,
    )  # fmt: skip
    raw = run_feature_absortion_experiment(
        **given, experiment_dir=work / "absorption", sparse_probing_experiment_dir=work / "sparse",
        feature_split_f1_jump_threshold=config.f1_jump_threshold, batch_size=64,
    )  # fmt: skip
    f1 = dict(zip(sparse["letter"], sparse["f1_probe"], strict=True))
    one = dict(zip(sparse["letter"], sparse["f1_sparse_sae_1"], strict=True))
    found = _aggregate_results_df(raw)
    found = found[[f1[letter] > config.min_GT_probe_f1 for letter in found["letter"]]]
    return {
        "letters": len(found),
        "mean_absorption_fraction_score": float(found["mean_absorption_fraction"].mean()),
        "mean_full_absorption_score": float(found["full_absorption_rate"].mean()),
        "mean_num_split_features": float(found["num_split_feats"].mean()),
        "mean_probe_f1": float(np.mean([f1[letter] for letter in found["letter"]])),
        "mean_sparse_f1": float(np.mean([one[letter] for letter in found["letter"]])),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", type=Path)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    told = json.loads((args.words / "words.json").read_text())
    x = load_file(args.words / "words.safetensors")["x"]
    config = AbsorptionEvalConfig()
    stand_in(told["words"], told["letter"], x, told["train"])
    model = Told(told["words"], x, config)
    found = []
    for seed in range(args.seeds):
        started = time.process_time()
        with tempfile.TemporaryDirectory() as work:
            sae = Sparse(load_file(args.dictionary), "told")
            found.append(once(model, sae, config, seed, Path(work)))
        found[-1]["cpu_seconds"] = time.process_time() - started
        print(found[-1], flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
