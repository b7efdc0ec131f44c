"""The sets of tensors that rules are measured on: name → shape, in the order of the model they are taken from."""

from __future__ import annotations

import re

Shapes = dict[str, tuple[int, ...]]

SETS = {
    "P1": "GPT-2 small: 148 tensors of 9 shapes, 124 million parameters",
    "P2": "200 matrices of 64 × 64",
    "P3": "one matrix of 4096 × 4096",
    "P4": "Llama 7B with every dimension divided by 8: 291 tensors of 5 shapes, 105 million parameters",
    "N10": "10 small tensors of 5 shapes; N followed by any other number likewise",
}
DIVISOR = 8
"""Of the dimensions of P4, where there is no other."""
MIXED = ((64, 64), (64,), (128, 64), (64, 128), (32, 64))
"""The shapes of N10 … N2000, in turn."""


def shapes_of(name: str, divisor: int = DIVISOR) -> Shapes:
    """The tensors of a set. divisor: of P4's dimensions. Raises ValueError if there is no set of that name."""
    match name:
        case "P1":
            return gpt2()
        case "P2":
            return {f"layers.{i}.weight": (64, 64) for i in range(200)}
        case "P3":
            return {"weight": (4096, 4096)}
        case "P4":
            return llama(divisor)
    count = re.fullmatch(r"N([1-9]\d{0,5})", name)
    if count is None:
        raise ValueError(f"there is no set `{name}`: choose P1, P2, P3, P4, or N and a number, such as N300")
    return mixed(int(count[1]))


def gpt2(width: int = 768, layers: int = 12, words: int = 50257, context: int = 1024) -> Shapes:
    """GPT-2's tensors, with the matrices as its Conv1D keeps them: inputs × outputs."""
    found: Shapes = {"wte.weight": (words, width), "wpe.weight": (context, width)}
    for i in range(layers):
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }
        found |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    return found | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def llama(divisor: int = 1, layers: int = 32) -> Shapes:
    """Llama 7B's tensors, every dimension divided."""
    width, inner, words = 4096 // divisor, 11008 // divisor, 32000 // divisor
    found: Shapes = {"embed_tokens.weight": (words, width)}
    for i in range(layers):
        block = {f"self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        block |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width), "mlp.down_proj.weight": (width, inner)}
        block |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
        found |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    return found | {"norm.weight": (width,), "lm_head.weight": (words, width)}


def mixed(count: int) -> Shapes:
    """So many small tensors, of 5 shapes in turn."""
    return {f"layers.{i}.weight": MIXED[i % len(MIXED)] for i in range(count)}


def thumbnail(shapes: Shapes, most: int = 40) -> Shapes:
    """One tensor for each distinct shape, with no dimension above `most`: what is looked at where all of a set would take too long."""
    first = {shape: name for name, shape in reversed(shapes.items())}
    return {name: tuple(min(n, most) for n in shapes[name]) for name in shapes if first[shapes[name]] == name}
