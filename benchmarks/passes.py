"""The floor: nothing but the passes over memory that a job cannot do without, as plain C++ loops on the same tensors.

A pass that reads is one stream; a pass in place reads and writes. (A copy would be no floor but a hindrance: it has to fetch what it overwrites.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch

from updsl.back.cpp_build import build
from updsl.bench.protocol import Contender
from updsl.bench.tensors import Tensors

SOURCE = """
#include <cstdint>

// Many running sums let the compiler use whole vectors without reordering anything that is written here.
extern "C" float read_pass(float *const *x, const int64_t *n, int64_t tensors) {
    float sums[64] = {};
    for (int64_t k = 0; k < tensors; ++k) {
        const float *a = x[k];
        int64_t i = 0;
        for (; i + 64 <= n[k]; i += 64)
            for (int j = 0; j < 64; ++j) sums[j] += a[i + j] * a[i + j];
        for (; i < n[k]; ++i) sums[0] += a[i] * a[i];
    }
    float sum = 0;
    for (float s : sums) sum += s;
    return sum;
}

extern "C" void scale_pass(float *const *g, const int64_t *n, int64_t tensors) {
    for (int64_t k = 0; k < tensors; ++k) {
        float *__restrict a = g[k];
        for (int64_t i = 0; i < n[k]; ++i) a[i] *= 0.5f;
    }
}

extern "C" void average_pass(float *const *g, float *const *m, const int64_t *n, int64_t tensors) {
    for (int64_t k = 0; k < tensors; ++k) {
        float *__restrict a = g[k], *__restrict b = m[k];
        for (int64_t i = 0; i < n[k]; ++i) {
            b[i] = 0.9f * b[i] + 0.1f * a[i];
            a[i] = b[i];
        }
    }
}

extern "C" void adam_pass(float *const *g, float *const *m, float *const *v, float *const *w, const int64_t *n, int64_t tensors) {
    for (int64_t k = 0; k < tensors; ++k) {
        const float *__restrict a = g[k];
        float *__restrict b = m[k], *__restrict c = v[k], *__restrict d = w[k];
        for (int64_t i = 0; i < n[k]; ++i) {
            b[i] = 0.9f * b[i] + 0.1f * a[i];
            c[i] = 0.999f * c[i] + 0.001f * a[i] * a[i];
            d[i] -= 1e-3f * (b[i] + c[i]);
        }
    }
}
"""

STREAMS = {"read": "g", "scale": "g", "average": "gs", "adam": "gssw"}
"""What each pass goes through: the gradients, a state of its own, the weights."""


def floor(tensors: Tensors, passes: Sequence[str]) -> Contender:
    """These passes, one after the other, as a contender of the name "floor"."""
    library = build(SOURCE, "benchmark_passes")
    sizes = (ctypes.c_int64 * len(tensors.shapes))(*(g.numel() for g in tensors.grads.values()))
    kept: list[torch.Tensor] = []
    calls: list[Callable[[], object]] = []
    for name in passes:
        tables = [_table(_stream(kind, tensors, kept)) for kind in STREAMS[name]]
        function = getattr(library, f"{name}_pass")
        function.argtypes = [ctypes.c_void_p] * (len(tables) + 1) + [ctypes.c_int64]
        calls.append(lambda function=function, tables=tables: function(*tables, sizes, len(sizes)))

    def step() -> list[torch.Tensor]:
        for call in calls:
            call()
        return kept

    return Contender("floor", step, tensors.fill)


def _stream(kind: str, tensors: Tensors, kept: list[torch.Tensor]) -> list[torch.Tensor]:
    if kind != "s":
        return list((tensors.grads if kind == "g" else tensors.weights).values())
    kept += (own := [torch.zeros_like(g) for g in tensors.grads.values()])
    return own


def _table(tensors: Sequence[torch.Tensor]) -> ctypes.Array:
    """The addresses of tensors."""
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
