"""Compiles the kernels of a generated module for sm_90, without a GPU, and prints what matters of each as JSON: python ptx.py FILE KERNEL=ARGUMENTS …"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from updsl.back.triton_exec import WARPS, load

TARGET = GPUTarget("cuda", 90, 32)


def facts(kernel: object, arguments: int) -> dict[str, object]:
    """Vector loads and stores, uses of local memory, and registers (None where the tools do not tell)."""
    signature = dict.fromkeys(kernel.arg_names, "*i64")
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(arguments)}
    made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs={}, attrs=divisible), target=TARGET, options={"num_warps": WARPS})
    text = made.asm["ptx"]
    wide = {"loads": "ld.global.v4", "stores": "st.global.v4", "local": ".local"}
    return {name: text.count(what) for name, what in wide.items()} | {"registers": registers(made.asm.get("cubin"))}


def registers(cubin: bytes | None) -> int | None:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if cubin is None or not tool.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False).stdout
    found = re.search(r"REG:(\d+)", said)
    return int(found.group(1)) if found else None


if __name__ == "__main__":
    module = load(Path(sys.argv[1]).read_text(encoding="utf-8"), "ptx")
    kernels = [getattr(module, name) for name in sys.argv[2:]]
    print(json.dumps({kernel.__name__: facts(kernel, len(kernel.arg_names)) for kernel in kernels}))
