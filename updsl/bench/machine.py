"""What measured: machine, versions, date."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import updsl

PACKAGES = ("torch", "numpy", "triton", "heavyball", "jax", "optax")


def machine() -> dict[str, Any]:
    """Everything a figure depends on but the code: processor, memory, card, compiler, versions, and the date in UTC."""
    versions = {"python": platform.python_version(), "updsl": updsl.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory(),
        "card": card,
        "cuda": torch.version.cuda if card else None,
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": compiler(),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Its model, and the widest vectors it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if re.search(rf"\b{flag}\b", text)), "")
    return ", ".join(filter(None, (model[1].strip() if model else platform.machine(), widest)))


def memory() -> int | None:
    """Of the machine, in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError, AttributeError):
        return None


def compiler() -> str | None:
    """The first line of what the C++ compiler says of itself."""
    path = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout
    return said.splitlines()[0] if said else None
