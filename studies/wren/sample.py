"""Sample short stories from a small Llama, fast, on one CPU thread.

Why an own sampler: for a model of 260 thousand parameters the time of `generate` is all
overhead. Here a step is one hand-written forward pass over a big batch with a key-value
cache allocated once, rows that have ended are dropped from the batch as they end, and the
openings are forced tokens in the same loop, so no separate prefill exists.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from openings import opening
from safetensors.torch import load_file
from tokenizers import Tokenizer

END_IDS = (1, 2)  # the stories model marks the end of a story with the next story's BOS


@dataclass(frozen=True)
class SampleSettings:
    """How stories are drawn; `hot_steps` tokens use the higher temperature, for variety."""

    batch: int = 512
    max_tokens: int = 500
    temperature: float = 0.7
    hot_temperature: float = 0.85
    hot_steps: int = 32
    top_p: float = 0.95
    top_k: int = 64
    bos_id: int = 1
    open_share: float = 0.75  # share of stories that start from one of our openings


class StoryModel:
    """The forward pass of a Llama folder, one token a row at a time, with a static cache."""

    def __init__(self, folder: Path, settings: SampleSettings) -> None:
        cfg = json.loads((folder / "config.json").read_text())
        w = load_file(folder / "model.safetensors")
        self.heads, self.kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
        self.dim = cfg["hidden_size"]
        self.hd = self.dim // self.heads
        self.eps = cfg["rms_norm_eps"]
        self.embed = w["model.embed_tokens.weight"]
        self.layers = []
        for i in range(cfg["num_hidden_layers"]):
            p = f"model.layers.{i}."
            n1 = w[p + "input_layernorm.weight"]
            n2 = w[p + "post_attention_layernorm.weight"]
            q, k, v = (w[p + f"self_attn.{c}_proj.weight"] * n1 for c in "qkv")
            gate, up = (w[p + f"mlp.{c}_proj.weight"] * n2 for c in ("gate", "up"))
            qkv, glu = torch.cat([q, k, v]).T.contiguous(), torch.cat([gate, up]).T.contiguous()
            out = w[p + "self_attn.o_proj.weight"].T.contiguous()
            down = w[p + "mlp.down_proj.weight"].T.contiguous()
            self.layers.append((qkv, out, glu, down))
        self.head = (self.embed * w["model.norm.weight"]).T.contiguous()
        freq = cfg["rope_theta"] ** (-torch.arange(0, self.hd, 2) / self.hd)
        angle = torch.arange(settings.max_tokens + 1)[:, None] * freq
        self.cos = torch.cat([angle.cos(), angle.cos()], -1)
        self.sin = torch.cat([-angle.sin(), angle.sin()], -1)
        shape = (2, len(self.layers), settings.batch, self.kv, settings.max_tokens, self.hd)
        self.cache = torch.zeros(shape)

    def keep(self, rows: torch.Tensor, upto: int) -> None:
        """Move the surviving rows of the cache to the front."""
        n = len(rows)
        for part in self.cache.flatten(0, 1):
            part[:n, :, :upto] = part[rows, :, :upto]

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """RMS norm without its weight, which is folded into the next matrix."""
        return F.rms_norm(x, (self.dim,), eps=self.eps)

    def step(self, ids: torch.Tensor, at: int) -> torch.Tensor:
        """Logits after feeding one token a row at position `at`."""
        b, half = len(ids), self.hd // 2
        cos, sin = self.cos[at], self.sin[at]
        x = self.embed[ids]
        for i, (qkv, out, glu, down) in enumerate(self.layers):
            mixed = (self.norm(x) @ qkv).view(b, self.heads + 2 * self.kv, self.hd)
            qk = mixed[:, : self.heads + self.kv]
            qk = qk * cos + torch.cat([qk[..., half:], qk[..., :half]], -1) * sin
            k, v = self.cache[0, i, :b], self.cache[1, i, :b]
            k[:, :, at] = qk[:, self.heads :]
            v[:, :, at] = mixed[:, self.heads + self.kv :]
            q = qk[:, : self.heads].reshape(b, self.kv, self.heads // self.kv, self.hd)
            z = F.scaled_dot_product_attention(q, k[:, :, : at + 1], v[:, :, : at + 1])
            x = x + z.reshape(b, self.dim) @ out
            gate, up = (self.norm(x) @ glu).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ down
        return self.norm(x) @ self.head


def draw(logits: torch.Tensor, heat: float, s: SampleSettings, g: torch.Generator) -> torch.Tensor:
    """Top-k then top-p sampling by inverse cumulative probability."""
    top, ids = logits.topk(s.top_k, dim=-1)
    total = (top / heat).softmax(-1).cumsum(-1)
    kept = ((total < s.top_p).sum(-1, keepdim=True)).clamp_max(s.top_k - 1)
    u = torch.rand(len(logits), 1, generator=g) * total.gather(1, kept)
    return ids.gather(1, (total < u).sum(-1, keepdim=True).clamp_max(s.top_k - 1)).squeeze(1)


@torch.inference_mode()
def sample_batch(
    model: StoryModel, tok: Tokenizer, s: SampleSettings, g: torch.Generator
) -> tuple[list[tuple[list[int], bool]], int]:
    """One batch of stories: (tokens, ended by itself) for each, and the tokens drawn."""
    forced = torch.full((s.batch, 64), -1)
    for r in range(s.batch):
        ids = tok.encode(opening(g, s.open_share), add_special_tokens=False).ids[:62]
        forced[r, : len(ids) + 1] = torch.tensor([s.bos_id, *ids])
    tokens = torch.zeros(s.batch, s.max_tokens + 1, dtype=torch.long)
    tokens[:, 0] = s.bos_id
    alive = torch.arange(s.batch)
    ended = torch.zeros(s.batch, dtype=torch.bool)
    length = torch.full((s.batch,), s.max_tokens)
    drawn = 0
    for t in range(s.max_tokens - 1):
        logits = model.step(tokens[alive, t], t)
        heat = s.hot_temperature if t < s.hot_steps else s.temperature
        new = draw(logits, heat, s, g)
        if t + 1 < forced.shape[1]:
            want = forced[alive, t + 1]
            new = torch.where(want >= 0, want, new)
        tokens[alive, t + 1] = new
        drawn += len(alive)
        done = (new == END_IDS[0]) | (new == END_IDS[1])
        ended[alive] |= done
        length[alive[done]] = t + 1
        # the cache is compacted only when enough rows have ended to pay for the copy
        gone = ended[alive]
        if gone.float().mean() > 0.125:
            rows = (~gone).nonzero().squeeze(1)
            model.keep(rows, t + 1)
            alive = alive[rows]
        if len(alive) == 0:
            break
    out = [(tokens[r, 1 : length[r]].tolist(), bool(ended[r])) for r in range(s.batch)]
    return out, drawn


def main() -> None:
    """Write stories as JSON lines until the batch count or the time budget is reached."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--batches", type=int, default=10_000)
    p.add_argument("--seconds", type=float, default=1e9)
    a = p.parse_args()
    torch.set_num_threads(1)
    s = SampleSettings()
    tok = Tokenizer.from_file(str(a.model / "tokenizer.json"))
    model = StoryModel(a.model, s)
    begin, total = time.time(), 0
    with a.out.open("w") as f:
        for batch in range(a.batches):
            if time.time() - begin > a.seconds:
                break
            # one seed a batch, so a shorter run is a prefix of a longer one
            g = torch.Generator().manual_seed(a.seed * 100_000 + batch)
            stories, n = sample_batch(model, tok, s, g)
            total += n
            for ids, ended in stories:
                f.write(json.dumps({"text": tok.decode(ids), "ended": ended}) + "\n")
            f.flush()
            print(f"batch {batch} tokens {total} rate {total / (time.time() - begin):.0f}/s")


if __name__ == "__main__":
    main()
