"""Copy a trained folder and the held-out tokens to where the package keeps wren.

Refuses to ship anything that does not load as a plain Hugging Face folder, whose tokenizer
does not start a text with BOS, or that is larger than the package allows.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGET = Path(__file__).parents[2] / "src/unweave/subject/wren"
FILES = ("config.json", "model.safetensors", "generation_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LIMIT = 8_000_000


def main() -> None:
    """Copy, then check what was copied."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path, help="a checkpoint folder")
    p.add_argument("data", type=Path, help="the folder data.py wrote")
    a = p.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, *TOKENIZER):
        shutil.copyfile(a.model / name, TARGET / name)
    shutil.copyfile(a.data / "heldout.safetensors", TARGET / "heldout.safetensors")
    model = AutoModelForCausalLM.from_pretrained(TARGET)
    tok = AutoTokenizer.from_pretrained(TARGET)
    text = "The cat sat; the dog é 猫."
    ids = tok(text)["input_ids"]
    assert ids[0] == tok.bos_token_id == model.config.bos_token_id
    assert tok.decode(ids, skip_special_tokens=True) == text
    with safe_open(TARGET / "heldout.safetensors", "pt") as f:
        tokens = f.get_tensor("tokens")
    assert int(tokens[0]) == tok.bos_token_id
    assert int(tokens.max()) < model.config.vocab_size
    size = sum(f.stat().st_size for f in TARGET.iterdir())
    assert size <= LIMIT, size
    parameters = sum(q.numel() for q in model.parameters())
    print(json.dumps({"bytes": size, "parameters": parameters, "heldout": len(tokens)}))


if __name__ == "__main__":
    main()
