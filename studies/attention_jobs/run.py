"""Jobs of attention: masks over pairs of features, jobs, and what taking a job out does.

    OMP_NUM_THREADS=1 python studies/attention_jobs/run.py OUT repeats [LAYER ...]
    OMP_NUM_THREADS=1 python studies/attention_jobs/run.py OUT wren LAYER QK_TRANSCODER

`repeats` trains a two-layer network to copy and QK transcoders of both its layers. `wren` takes a
QK transcoder of one layer from a folder that `QKTranscoder.save` wrote. OUT keeps what was trained,
so that a second run starts there. Writes numbers.json beside this file, one entry a block.
"""

import json
import sys
from pathlib import Path

import torch
from matching import matching
from measure import Rows, interval, kl, measure, read
from safetensors.torch import load_file, save_file
from torch import Tensor

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.attention.feature_basis import reader_of
from unweave.dictionaries.attention.qk_block import attention_inputs, qk_block
from unweave.dictionaries.attention.qk_start import start_qk
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.progress import Lines
from unweave.subject import Subject, load_subject, token_rows, wrap_module
from unweave.subject.fresh import FreshSettings, fresh_llama
from unweave.subject.scores import scoring
from unweave.training.attention.mask import MaskSettings, MaskText
from unweave.training.attention.qk import QKSettings, learn_qk
from unweave.validate.attention.pair_kinds import duplicate
from unweave.validate.bootstrap import ratio_interval
from unweave.validate.worlds.repeats import (
    START,
    RepeatSettings,
    draw_repeats,
    foreseeable,
    train_repeats_subject,
)

NUMBERS = Path(__file__).parent / "numbers.json"
REPEATS = RepeatSettings()
WREN_MASKS = MaskSettings(penalties=(1e-6, 1e-5, 1e-4), steps=30, rows=3, lr=0.06)


def repeats_subject(out: Path) -> Subject:
    """Trained once."""
    path = out / "repeats.safetensors"
    if not path.exists():
        subject = train_repeats_subject(REPEATS, seed=1, progress=Lines())
        save_file(subject.model.state_dict(), path)
    sizes = FreshSettings(
        vocab_size=REPEATS.vocab + 1, start_token=START, context=REPEATS.positions, layers=2,
        width=REPEATS.width, heads=REPEATS.heads, neurons=REPEATS.neurons,
    )  # fmt: skip
    model = fresh_llama(sizes, seed=1)
    model.load_state_dict(load_file(path))
    return wrap_module(model, name="repeats")


def repeats_transcoder(
    subject: Subject, layer: int, out: Path, features: int, k: int
) -> QKTranscoder:
    """Trained once."""
    folder = out / f"repeats_qk{layer}_{features}_{k}"
    if not (folder / "spec.json").exists():
        rows, _ = draw_repeats(REPEATS, 1500, seed=77)
        x = attention_inputs(subject, rows, [layer])[layer]
        block = qk_block(subject, layer, REPEATS.positions)
        transcoder = start_qk(
            block, x[:200], site=f"blocks.{layer}.attn.in", n_queries=features, n_keys=features,
            query_activation=TopK(k=k), start="data",
        )  # fmt: skip
        settings = QKSettings(steps=800, rows=32)
        learn_qk(transcoder, block, x, seed=1, settings=settings, progress=Lines())
        transcoder.save(folder)
    return QKTranscoder.load(folder)


def told(rise: Tensor, tokens: Tensor) -> dict:
    """Where a row of the copying network can be foreseen, and where it cannot."""
    lengths = torch.tensor([period(row) for row in tokens])
    return split(rise, foreseeable(REPEATS, lengths)[:, :-1].bool())


def period(row: Tensor) -> int:
    """After how many tokens a row comes round again."""
    for length in range(REPEATS.shortest, REPEATS.longest):
        if torch.equal(row[1:-length], row[1 + length :]):
            return length
    return REPEATS.longest


def again(rise: Tensor, tokens: Tensor) -> dict:
    """Where what comes next is what followed the last place of the present token."""
    before, n = duplicate(tokens), tokens.shape[1]
    last = (before * torch.arange(1, n + 1)).argmax(-1)
    follows = tokens.gather(1, (last + 1).clamp_max(n - 1))
    return split(rise, (before.any(-1) & (follows == tokens.roll(-1, 1)))[:, :-1])


def split(rise: Tensor, mark: Tensor) -> dict:
    """Mean rise of the loss in nats where the mark is and where it is not, rows resampled."""
    found = {}
    for name, on in (("repeated", mark.float()), ("elsewhere", 1 - mark.float())):
        both = ((rise * on).sum(1), on.sum(1))
        found[name] = interval(ratio_interval(*(part.double().numpy() for part in both)))
    return found


def note(key: str, found: dict) -> None:
    """One more entry in numbers.json."""
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    NUMBERS.write_text(json.dumps(known | {key: found}, indent=1) + "\n")


def repeats(out: Path, layers: list[int]) -> None:
    """More features where any of 64 tokens has to be matched; then few active ones of them."""
    subject = repeats_subject(out)
    counts = ((300, 901), (60, 902), (100, 904))
    rows = Rows(*(draw_repeats(REPEATS, count, seed=seed)[0] for count, seed in counts))
    masks = MaskSettings(penalties=(1e-6, 1e-5, 1e-4, 1e-3), steps=40, rows=4)
    for layer in layers or [0, 1]:
        path = out / f"repeats_masks{layer}.safetensors"
        transcoder = repeats_transcoder(subject, layer, out, *((96, 6), (192, 8))[layer])
        found = measure(
            subject, transcoder, rows, told, path=path, masks=masks, least=1e-3, n_jobs=8
        )
        note(f"repeats/{layer}", found)
    if 1 in (layers or [1]):
        x, _, own = read(subject, 1, rows.train)
        few = repeats_transcoder(subject, 1, out, 128, 2)
        reader = reader_of(few, scoring(subject, 1, x.shape[1]), x, least=1e-3)
        line = matching(subject, reader, rows, x, told)
        text = MaskText(reader.code(x[:100]), own[:100])
        note("repeats/1, 2 active", line | {"kl": kl(text, reader, torch.ones(reader.basis.shape))})


def wren_rows(subject: Subject) -> Rows:
    """wren's own text to learn from, and text of people that it was not trained on to judge by."""
    mine = token_rows(subject, "self", tokens=30_000, context=64, seed=5)
    theirs = token_rows(subject, "heldout", tokens=14_000, context=64, seed=6)
    return Rows(mine.train[:300], mine.heldout[:24], theirs.train[:40])


def wren(out: Path, layer: int, folder: Path) -> None:
    subject = load_subject("wren", dtype="float32")
    rows = wren_rows(subject)
    path = out / f"wren_masks{layer}.safetensors"
    found = measure(
        subject, QKTranscoder.load(folder), rows, again, path=path, masks=WREN_MASKS, least=3e-3,
        n_jobs=16,
    )  # fmt: skip
    note(f"wren/{layer}", found)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in ("repeats", "wren"):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if sys.argv[2] == "repeats":
        repeats(folder, [int(layer) for layer in sys.argv[3:]])
    else:
        wren(folder, int(sys.argv[3]), Path(sys.argv[4]))
