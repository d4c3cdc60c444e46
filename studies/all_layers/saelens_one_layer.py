"""Run in SAELens' own environment: train its TopK autoencoder on vectors from a file, once through.

python saelens_one_layer.py VECTORS BATCH default|autocast
"""

import json
import sys
import time
from collections.abc import Iterator

import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig


def main() -> None:
    torch.set_num_threads(1)
    file, batch, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    vectors = torch.load(file, weights_only=True)
    steps = len(vectors) // batch
    sae = sae_lens.TopKTrainingSAE(
        sae_lens.TopKTrainingSAEConfig(
            d_in=vectors.shape[1], d_sae=4608, k=32, dtype="float32", device="cpu"
        )
    )

    def batches() -> Iterator[torch.Tensor]:
        for step in range(steps):
            yield vectors[step * batch : (step + 1) * batch]

    settings = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=1e-3, lr_end=1e-4,
        device="cpu", autocast=mode == "autocast", logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = sae_lens.SAETrainer(settings, sae, batches())
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit()
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps({name: round(value, 2) for name, value in spent.items()}))


main()
