"""SAELens through its SAETrainer."""

import torch

from benchmarks.contestants.contract import (
    Contestant,
    Data,
    Task,
    common_threshold,
    seeded,
    settled_rows,
)


def saelens(data: Data, task: Task, *, autocast: bool = False) -> Contestant:
    """TopK, BatchTopK and JumpReLU; with `autocast` its products are taken in bfloat16."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    seeded(task.seed)
    shared = {
        "d_in": task.width, "d_sae": task.latents, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    sae = {
        "topk": lambda: sae_lens.TopKTrainingSAE(
            sae_lens.TopKTrainingSAEConfig(k=task.k, **shared)
        ),
        "batchtopk": lambda: sae_lens.BatchTopKTrainingSAE(
            sae_lens.BatchTopKTrainingSAEConfig(k=task.k, **shared)
        ),
        "jumprelu": lambda: sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(**shared)
        ),
    }[task.kind]()
    if task.kind == "jumprelu" and task.settled:
        with torch.no_grad():
            pre = sae.encode_with_hidden_pre(settled_rows(data))[1]
        sae.threshold.data.fill_(common_threshold(pre, task.k))
    rate = task.lr or 1e-3
    settings = SAETrainerConfig(
        total_training_samples=data.steps * data.batch,
        train_batch_size_samples=data.batch,
        lr=rate,
        lr_end=rate / 10,
        device="cpu",
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = sae_lens.SAETrainer(settings, sae, iter(data))

    def apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        training = sae.training
        sae.eval()
        code = sae.encode(x)
        output = sae.decode(code)
        sae.train(training)
        return output, (code != 0).sum(0)

    return Contestant(trainer.fit, apply, lambda: sae.W_dec.detach())
