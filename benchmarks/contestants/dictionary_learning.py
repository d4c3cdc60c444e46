"""dictionary_learning through its `trainSAE`; its windows are cut down to the run."""

import torch

from benchmarks.contestants.contract import Contestant, Data, Task, common_threshold, settled_rows


def dictionary_learning(data: Data, task: Task) -> Contestant:
    """TopK, BatchTopK and JumpReLU."""
    from dictionary_learning.training import trainSAE

    kept: dict = {}

    def make(**settings):
        trainer = kept["trainer"] = _kind(task)(**settings)
        if task.kind == "jumprelu" and task.settled:
            with torch.no_grad():
                _, pre = trainer.ae.encode(settled_rows(data), output_pre_jump=True)
            trainer.ae.threshold.data.fill_(common_threshold(pre, task.k))
        return trainer

    settings = {
        "trainer": make, "steps": data.steps, "activation_dim": task.width,
        "dict_size": task.latents, "layer": 0, "lm_name": "none", "lr": task.lr or 1e-3,
        "device": "cpu", "seed": task.seed, "warmup_steps": data.steps // 20,
    }  # fmt: skip
    if task.kind == "jumprelu":
        settings |= {"target_l0": float(task.k), "sparsity_warmup_steps": None}
    else:
        settings |= {"k": task.k, "threshold_start_step": data.steps // 20}
    data.extra = 1

    def fit() -> None:
        trainSAE(data=data, trainer_configs=[settings], steps=data.steps, device="cpu")

    def apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ae = kept["trainer"].ae
        # Its threshold is not there before a tenth of the run: choose by batch, as in training.
        code = ae.encode(x, use_threshold=False) if task.kind == "batchtopk" else ae.encode(x)
        return ae.decode(code), (code != 0).sum(0)

    def directions() -> torch.Tensor:
        ae = kept["trainer"].ae
        return (ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.T).detach()

    return Contestant(fit, apply, directions)


def _kind(task: Task):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kinds = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer, "jumprelu": JumpReluTrainer}
    return kinds[task.kind]
