"""The public implementation's side: sae-bench 0.6.0 in an environment of its own, on CPU.

    ENV/bin/python studies/sae_bench/public.py INPUTS MODEL DICTIONARY --out FILE [--seeds 5]

MODEL is a Hugging Face folder of a Llama. What is changed of the public code: where data sets and
the model's name are looked up (files of INPUTS in the place of the hub), the classes and pairs that
go with these data, the numbers of examples, and that equal texts go through the model once and
equal activations through the encoder once, whatever the seed. What is computed from them is theirs.
"""

import argparse
import functools
import json
import logging
import os
import random
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Its checks of shapes contradict one another with later versions of jaxtyping and beartype.
os.environ["JAXTYPING_DISABLE"] = "1"

import numpy as np
import pandas as pd
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.dataset_creation as crossed
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as probing
import sae_bench.sae_bench_utils.activation_collection as activations
import sae_bench.sae_bench_utils.dataset_info as info
import sae_bench.sae_bench_utils.dataset_utils as data_sets
import torch
import transformer_lens.loading_from_pretrained as lens
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

BIOS, AMAZON = "LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"
SENTIMENT, NEWS = "canrager/amazon_reviews_mcauley_1and5_sentiment", "fancyzhx/ag_news"
LAYER = 14
PARTS = ("core", "sparse_probing", "scr", "tpp", "pooled")
TEXTS, TAKEN_OUT = 64, 50
"""Texts and latents (the first ones) for comparing means number by number."""


class Sparse(BaseSAE):
    """A dictionary that knows its codes are sparse; equal inputs are encoded once."""

    def __init__(self, weights: dict[str, torch.Tensor], model_name: str) -> None:
        d_in, d_sae = weights["W_enc"].shape
        cpu = torch.device("cpu")
        super().__init__(d_in, d_sae, model_name, LAYER, cpu, torch.float32)
        self.k, self.threshold = weights.pop("k", None), weights.pop("threshold", None)
        self.load_state_dict(weights)
        self.requires_grad_(False)
        self.known: dict = {}

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        key = tuple(x.shape), x.double().sum().item(), x.reshape(-1)[:4096].double().norm().item()
        if key not in self.known:
            pre = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
            if self.k is not None:
                top = pre.topk(int(self.k), sorted=False, dim=-1)
                pre = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
            else:
                pre = pre * (pre > self.threshold)
            self.known[key] = pre.flatten(0, -2).to_sparse_csr()
        return self.known[key].to_dense().view(*x.shape[:-1], -1)

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        rows = acts.flatten(0, -2).to_sparse_csr()
        return (rows @ self.W_dec + self.b_dec).view(*acts.shape[:-1], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))


def frame(inputs: Path, name: str, columns: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """A data set of the inputs under the columns and values of a published one."""
    found = {}
    for side in ("train", "test"):
        lines = (inputs / "data" / name / f"{side}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[side] = pd.DataFrame({
            column: [values.get(row[key], row[key]) for row in rows]
            for column, (key, values) in columns.items()
        })  # fmt: skip
    return found


def labels_of(inputs: Path, name: str) -> list[str]:
    lines = (inputs / "data" / name / "train.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["label"] for line in lines})


def stand_in(inputs: Path, perform_scr: bool) -> None:
    """Put local data in the place of the hub's."""
    news, topics = labels_of(inputs, "ag_news"), labels_of(inputs, "wiki_topics")
    text = ("text", {})
    known = {
        NEWS: frame(
            inputs,
            "ag_news",
            {"text": text, "label": ("label", {n: i for i, n in enumerate(news)})},
        )
    }
    stars = {"negative": 1.0, "positive": 5.0}
    ab = {"a": 0, "b": 1}
    if perform_scr:
        known["LabHC/bias_in_bios"] = frame(
            inputs,
            "bios",
            {
                "hard_text": text,
                "gender": ("cue", {"male": 0, "female": 1}),
                "profession": ("label", {"professor": 21, "nurse": 13}),
            },
        )
        known[AMAZON] = frame(
            inputs,
            "reviews",
            {
                "text": text,
                "category": ("label", {"negative": 24, "positive": 26}),
                "rating": ("cue", {"sentence": 1.0, "review": 5.0}),
            },
        )
    else:
        known["LabHC/bias_in_bios"] = frame(
            inputs,
            "wiki_topics",
            {
                "hard_text": text,
                "gender": ("cue", ab),
                "profession": ("label", {n: i for i, n in enumerate(topics)}),
            },
        )
        known[AMAZON] = frame(
            inputs,
            "ag_news",
            {
                "text": text,
                "rating": ("cue", ab),
                "category": ("label", {n: i for i, n in enumerate(news)}),
            },
        )
        info.chosen_classes_per_dataset[BIOS] = [str(i) for i in range(len(topics))]
        info.chosen_classes_per_dataset[AMAZON] = [str(i) for i in range(len(news))]
    reviews = frame(inputs, "sst2", {"text": text, "rating": ("label", stars)})

    def load(name: str, **_: object) -> dict[str, pd.DataFrame]:
        return known[name] if not (name == AMAZON and load.sentiment) else reviews

    load.sentiment = False
    data_sets.load_dataset = crossed.load_dataset = load
    stand_in.load = load


def once_through_the_model() -> None:
    """Equal rows of tokens go through the model once."""
    theirs, known = activations.get_llm_activations, {}

    def collect(tokens, model, batch_size, layer, hook_name, mask_bos_pad_eos_tokens=False,
                show_progress=True):  # fmt: skip
        keys = [row.numpy().tobytes() for row in tokens]
        new = list(dict.fromkeys(k for k in keys if k not in known))
        if new:
            first = {k: i for i, k in reversed(list(enumerate(keys)))}
            rows = tokens[[first[k] for k in new]]
            acts = theirs(rows, model, batch_size, layer, hook_name, mask_bos_pad_eos_tokens, False)
            known.update(zip(new, acts.clone(), strict=True))
        return torch.stack([known[k] for k in keys])

    activations.get_llm_activations = collect


class Rows(list):
    """Rows of tokens as the store reads them; all are used, so their order does not matter."""

    def shuffle(self, seed: int) -> "Rows":
        return self


def run_core(inputs: Path, sae: Sparse, model_name: str, out: Path) -> dict:
    rows = np.load(inputs / "rows.npy")
    given = Rows({"tokens": row} for row in rows.tolist())
    store = core.ActivationsStore.from_sae
    core.ActivationsStore.from_sae = lambda m, s, context_size, **_: store(
        m, s, dataset=given, context_size=context_size
    )
    batches = len(rows) // 16
    core.multiple_evals(
        [("unweave", sae)], batches, batches, 16, compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True, context_size=rows.shape[1],
        exclude_special_tokens_from_reconstruction=True, output_folder=str(out), device="cpu",
        force_rerun=True)  # fmt: skip
    found = json.loads(next(out.glob("*.json")).read_text())
    return found["eval_result_metrics"]


def run_pooled(inputs: Path, model, sae: Sparse, context: int, path: Path) -> dict:
    """Means of a few texts: of the site, of the latents, and of the site with some taken out."""
    lines = (inputs / "data" / "sst2" / "test.jsonl").read_text().splitlines()[:TEXTS]
    texts = {"texts": [json.loads(line)["text"] for line in lines]}
    tokens = data_sets.tokenize_data_dictionary(texts, model.tokenizer, context, "cpu")
    acts = activations.get_all_llm_activations(tokens, model, 32, LAYER, sae.cfg.hook_name, True)
    out = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    out[:TAKEN_OUT] = True
    found = {
        "site": activations.create_meaned_model_activations(acts)["texts"],
        "latents": activations.get_sae_meaned_activations(acts, sae, 125)["texts"],
        "without": scr_and_tpp.ablated_precomputed_activations(acts["texts"], sae, out, 125),
    }
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in found.items()})
    return {"file": path.name}


def settings(context: int) -> dict:
    return {"context_length": context, "llm_dtype": "float32", "llm_batch_size": 32,
            "model_name": "local", "sae_batch_size": 125}  # fmt: skip


def run_probing(model, sae: Sparse, seed: int, out: Path, sizes: dict) -> dict:
    config = SparseProbingEvalConfig(
        random_seed=seed,
        dataset_names=[NEWS, SENTIMENT],
        probe_train_set_size=sizes["probe"][0],
        probe_test_set_size=sizes["probe"][1],
        **settings(sizes["context"]),
    )
    stand_in.load.sentiment = True
    found, _ = probing.run_eval_single_sae(config, sae, model, "cpu", str(out), False)
    stand_in.load.sentiment = False
    return {
        "mean": {k: v for k, v in found.items() if not isinstance(v, dict)},
        "sets": {k: v for k, v in found.items() if isinstance(v, dict)},
    }


def run_scr_or_tpp(
    model, sae: Sparse, seed: int, out: Path, sizes: dict, scr: bool, names: list[str]
) -> dict:
    train, test = sizes["scr" if scr else "tpp"]
    config = ScrAndTppEvalConfig(
        random_seed=seed,
        perform_scr=scr,
        dataset_names=names,
        train_set_size=train,
        test_set_size=test,
        n_values=sizes["n"],
        **settings(sizes["context"]),
        column1_vals_lookup={BIOS: [("professor", "nurse")], AMAZON: [("Books", "CDs_and_Vinyl")]},
    )
    found, _ = scr_and_tpp.run_eval_single_sae(config, sae, model, "cpu", str(out), False)
    return {
        "mean": {k: v for k, v in found.items() if not isinstance(v, dict)},
        "sets": {k: v for k, v in found.items() if isinstance(v, dict)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=Path)
    parser.add_argument("model")
    parser.add_argument("dictionary")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--sets", type=int, default=2, help="of the two of SCR and of TPP")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    sizes = json.loads((args.inputs / "sizes.json").read_text())
    name_of = lens.get_official_model_name
    lens.get_official_model_name = lambda n: n if Path(n).exists() else name_of(n)
    whole = HookedTransformer.from_pretrained_no_processing
    HookedTransformer.from_pretrained_no_processing = functools.partial(whole, n_ctx=256)
    work = args.out.with_suffix(".work")
    once_through_the_model()
    found = json.loads(args.out.read_text()) if args.out.is_file() else {}
    parts = [part for part in args.only.split(",") if part not in found]

    def sae() -> Sparse:
        return Sparse(load_file(args.inputs / f"{args.dictionary}.safetensors"), args.model)

    if "core" in parts:
        found["core"] = run_core(args.inputs, sae(), args.model, work / "core")
        args.out.write_text(json.dumps(found, indent=1))
    model = HookedTransformer.from_pretrained_no_processing(
        args.model, device="cpu", dtype=torch.float32
    )
    one = sae()
    for part in parts:
        if part == "core":
            continue
        if part == "pooled":
            path = args.out.with_suffix(".npz")
            found[part] = run_pooled(args.inputs, model, one, sizes["context"], path)
            args.out.write_text(json.dumps(found, indent=1))
            continue
        stand_in(args.inputs, part == "scr")
        per_seed, names = [], [BIOS, AMAZON][: args.sets]
        for seed in range(42, 42 + args.seeds):
            start = time.time()
            random.seed(seed)
            scratch = work / part / str(seed)
            if part == "sparse_probing":
                per_seed.append(run_probing(model, one, seed, scratch, sizes))
            else:
                per_seed.append(
                    run_scr_or_tpp(model, one, seed, scratch, sizes, part == "scr", names)
                )
            print(f"PUBLIC {part} seed {seed}: {time.time() - start:.0f} s", flush=True)
            one.known.clear()
        found[part] = per_seed
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
