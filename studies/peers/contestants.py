"""One contestant of the race, run in its own environment: train on the vectors, say how it went.

    python contestants.py NAME WORK VECTORS BATCH LR SEED

WORK holds vectors.npy (training rows, then the held-out ones) and gets NAME.npz: what the
dictionary makes of the held-out rows, how often each latent fires there, its decoder rows and the
seconds. The environments of the peers know nothing of unweave, so this file imports it only where
unweave itself runs.
"""

import contextlib
import importlib.util
import io
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

HELDOUT, WIDTH, LATENTS, K = 16_384, 576, 4_608, 32


class Batches:
    """The training rows in their order; a list to whoever asks for its length."""

    def __init__(self, path: Path, vectors: int, batch: int, extra: int = 0) -> None:
        self._rows = np.load(path, mmap_mode="r")
        self.steps, self._batch, self._extra = vectors // batch, batch, extra

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for step in range(self.steps + self._extra):
            start = step % self.steps * self._batch
            yield torch.from_numpy(np.array(self._rows[start : start + self._batch]))

    def heldout(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self._rows[-HELDOUT:]))


def unweave(data: Batches, lr: float, seed: int):
    """The recipe `topk-short`, on the rows in the order in which they lie."""
    from unweave.dictionaries.dictionary import Dictionary
    from unweave.dictionaries.dictionary_spec import Port
    from unweave.subject import keep_freed_memory
    from unweave.training.batches import VectorBatch
    from unweave.training.recipes.ask import Ask
    from unweave.training.recipes.catalog import recipe
    from unweave.training.trainee import Trainee
    from unweave.training.trainer import TrainSettings, train

    keep_freed_memory()
    port = Port(site="x", width=WIDTH)
    asked = Ask(reads=(port,), writes=(port,), n_latents=LATENTS, k=K, lr=lr or None)
    specs, settings = recipe("topk-short")(asked)
    dictionary = Dictionary(specs["dictionary"])

    class Source:
        steps, batch = data.steps, data._batch

        def __init__(self) -> None:
            self._iterator, self._first = iter(data), next(iter(data))

        def at(self, step: int) -> VectorBatch:
            return VectorBatch({"x": next(self._iterator)})

        def first(self) -> VectorBatch:
            return VectorBatch({"x": self._first})

    def fit() -> None:
        source = Source()
        trainee = Trainee(
            {"x": dictionary}, settings, steps=data.steps, batch=source.batch, seed=seed
        )
        train([trainee], source, begin=source.first(), settings=TrainSettings(log_every=10**9))

    def apply(x):
        code = dictionary.encode(x)
        return dictionary.decode(code), code.fired()

    return fit, apply, dictionary.directions


def sparsify(data: Batches, lr: float, seed: int, *, signum: bool = False):
    """EleutherAI sparsify's coder and the update of its trainer."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    config = SparseCoderConfig(activation="topk", num_latents=LATENTS, k=K)
    torch.manual_seed(seed)
    coder = SparseCoder(WIDTH, config, "cpu", dtype=torch.float32)
    if signum:
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        base = SignSGD(coder.parameters(), lr=lr or 5e-3 / (LATENTS / 2**14) ** 0.5)
        optimizer = ScheduleFreeWrapper(base, momentum=0.95)
        optimizer.train()
    else:
        optimizer = torch.optim.Adam(coder.parameters(), lr=lr or 1e-3)

    def fit() -> None:
        for step, x in enumerate(data):
            if step == 0:
                coder.b_dec.data = x.mean(0)
            coder.set_decoder_norm_to_unit_norm()
            spread = (x - x.mean(0)).pow(2).sum()
            coder(x=x, y=x, dead_mask=None, total_variance=spread).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()
        if signum:
            optimizer.eval()

    def apply(x):
        out = coder(x)
        on = out.latent_indices[out.latent_acts > 0]
        return out.sae_out, torch.bincount(on, minlength=LATENTS)

    return fit, apply, lambda: coder.W_dec.detach()


def saelens(data: Batches, lr: float, seed: int):
    """SAELens' TopK through its trainer."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    torch.manual_seed(seed)
    config = sae_lens.TopKTrainingSAEConfig(
        k=K, d_in=WIDTH, d_sae=LATENTS, dtype="float32", device="cpu"
    )
    sae, rate = sae_lens.TopKTrainingSAE(config), lr or 1e-3
    settings = SAETrainerConfig(
        total_training_samples=data.steps * data._batch,
        train_batch_size_samples=data._batch,
        lr=rate,
        lr_end=rate / 10,
        device="cpu",
        autocast=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = sae_lens.SAETrainer(settings, sae, iter(data))

    def apply(x):
        sae.eval()
        code = sae.encode(x)
        return sae.decode(code), (code != 0).sum(0)

    return trainer.fit, apply, lambda: sae.W_dec.detach()


def dictionary_learning(data: Batches, lr: float, seed: int):
    """dictionary_learning's TopK through `trainSAE`; its windows cut down to the run."""
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    kept: dict = {}

    def make(**settings):
        kept["trainer"] = TopKTrainer(**settings)
        return kept["trainer"]

    settings = {
        "trainer": make, "steps": data.steps, "activation_dim": WIDTH, "dict_size": LATENTS,
        "layer": 0, "lm_name": "none", "lr": lr or 1e-3, "device": "cpu", "seed": seed, "k": K,
        "warmup_steps": data.steps // 20, "threshold_start_step": data.steps // 20,
    }  # fmt: skip
    data._extra = 1

    def fit() -> None:
        trainSAE(data=data, trainer_configs=[settings], steps=data.steps, device="cpu")

    def apply(x):
        found, code = kept["trainer"].ae(x, output_features=True)
        return found, (code != 0).sum(0)

    return fit, apply, lambda: kept["trainer"].ae.decoder.weight.T.detach()


def hand_tuned(data: Batches, lr: float, seed: int):
    """The script that this project began with, not part of it: HAND_TUNED names its file."""
    spec = importlib.util.spec_from_file_location("hand_tuned", os.environ["HAND_TUNED"])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fit, code_of, directions = script.p_reffast("topk_ebbwd_csr", LATENTS, data, lr or 1e-3, None)

    def apply(x):
        output, code = code_of(x)
        return output, (code != 0).sum(0)

    return fit, apply, directions


CONTESTANTS = {
    "hand-tuned": hand_tuned,
    "unweave": unweave,
    "sparsify": sparsify,
    "sparsify-signum": lambda *a: sparsify(*a, signum=True),
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}


def main(name: str, work: Path, vectors: int, batch: int, lr: float, seed: int) -> None:
    torch.set_num_threads(1)
    data = Batches(work / "vectors.npy", vectors, batch)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit, apply, directions = CONTESTANTS[name.split("@")[0]](data, lr, seed)
        cpu, wall = time.process_time(), time.perf_counter()
        fit()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        heldout, fired = data.heldout(), torch.zeros(LATENTS, dtype=torch.long)
        outputs = []
        with torch.no_grad():
            for x in heldout.split(4096):
                output, counts = apply(x)
                outputs.append(output)
                fired += counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {"cpu_s": cpu, "wall_s": wall, "peak_rss_gib": peak}
    np.savez(
        work / f"{name}.npz",
        output=torch.cat(outputs).numpy(),
        fired=fired.numpy(),
        directions=directions().numpy(),
        seconds=json.dumps(seconds),
    )


if __name__ == "__main__":
    name, work, vectors, batch, lr, seed = sys.argv[1:]
    main(name, Path(work), int(vectors), int(batch), float(lr), int(seed))
