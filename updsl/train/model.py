"""A small transformer that predicts the next byte."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as in GPT-2."""

    def __init__(self, size: Size):
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.attention_out = nn.Linear(size.width, size.width)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(batch, context, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, context, width)
        x = x + self.attention_out(mixed)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Bytes (batch, context) → logits of the next (batch, context, 256). `embed_tokens` and `lm_head` are named as rules that look for them expect."""

    def __init__(self, size: Size):
        super().__init__()
        self.embed_tokens = nn.Embedding(256, size.width)
        self.embed_positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.final_norm = nn.LayerNorm(size.width)
        self.lm_head = nn.Linear(size.width, 256, bias=False)
        for embedding in (self.embed_tokens, self.embed_positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.final_norm(self.blocks(self.embed_tokens(x) + self.embed_positions.weight)))


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the bytes, in nats."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def make_model(size: Size, seed: int) -> Transformer:
    """The model at its start, the same for the same seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(size)
