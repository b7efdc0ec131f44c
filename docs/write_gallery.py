"""Writes docs/rules/: a page for each rule of the library, and an index. Run `make docs`, or `python docs/write_gallery.py`.

Everything on a page comes from the rule's file; its conformance from docs/conformance.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from updsl.core.frame import Tensor
from updsl.core.scope import ELEMENT
from updsl.explanation import BYTES, explanation
from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.front.files import library, load_module
from updsl.front.latex import to_latex
from updsl.front.module import Module

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "rules"
CONFORMANCE = ROOT / "docs" / "conformance.md"
MATRIX = Tensor("layer.weight", (1024, 512))

FOLDERS = {
    "stages": "Small rules to build others from",
    "clipping": "What bounds a gradient",
    "normalizing": "What gives a gradient a scale",
    "optimizers": "From the gradient to the step",
    "projecting": "Optimizers in a subspace of a matrix",
    "private": "Differential privacy, from the gradients of single samples",
}

IDENTIFIER = re.compile(r"arXiv:(?P<arxiv>\d{4}\.\d{4,5})|doi:(?P<doi>10\.\S+?)(?=[,;]?(?:\s|$))|(?P<url>https?://\S+?)(?=[.,;]?(?:\s|$))|JMLR \d+:\d+")
AUTHORS = re.compile(r"(?<!\w)((?!After )[A-Z][\w'-]+(?:,? (?:&|et al\.|[A-Z][\w'-]*))* \d{4}), ?$")
NOTATION = r"""A formula is the rule's text in the literature's notation: $m = x$ defines $m$, and $m \leftarrow x$ gives a state its new value; $g$ is the
gradient, $w$ the weight, $\eta$ the learning rate, $t$ the step. Products are by entry, but between matrices that the text multiplies with `@`. An
index such as $\Vert g \Vert_{\mathrm{column}}$ says over which scope is reduced; without one it is the tensor, or what a `per` around the rule says.
$f(x; a)$ is the rule $f$ with the parameter $a$, applied to $x$."""


def pages() -> dict[str, str]:
    """File name → text, of the whole gallery."""
    names = sorted(library().rules)
    return {"README.md": index(names)} | {f"{name}.md": page(load_module(name)) for name in names}


# --- the index -------------------------------------------------------------------------------------------------------


def index(names: Iterable[str]) -> str:
    by_folder = {folder: [n for n in names if library().files[n].parent.name == folder] for folder in FOLDERS}
    counted = sum(map(len, by_folder.values()))
    head = [
        "# The rule library",
        f"{counted} rules, each a text file. `updsl show RULE` prints one, `updsl explain RULE` says what it computes and keeps, and\n"
        "`updsl new NAME --like RULE` starts your own from it.",
        NOTATION,
    ]
    return document([*head, *(section for folder, members in by_folder.items() for section in _folder(folder, members))])


def _folder(folder: str, names: Iterable[str]) -> Iterator[str]:
    yield f"## {folder}"
    yield f"{FOLDERS[folder]}."
    yield table(("rule", "what it does"), ((f"[{n}]({n}.md)", prose(load_module(n).doc.split("\n")[0])) for n in names))


# --- a page ----------------------------------------------------------------------------------------------------------


def page(module: Module) -> str:
    path = library().files[module.name.casefold()].relative_to(library().folder)
    first, _, rest = module.doc.partition("\n")
    found = explanation(module, [MATRIX])
    return document(
        [
            f"# {module.name}",
            prose(first),
            *(prose(" ".join(p.split())) for p in rest.split("\n\n") if p.strip()),
            f"{_kind(module)} [{path.as_posix()}](../../rules/{path.as_posix()})",
            "## Text",
            fenced("", module.text),
            "## Formula",
            fenced("math", to_latex(module)),
            "## Parameters",
            _parameters(found["parameters"]),
            *_inputs(found["inputs"]),
            "## State",
            *_states(found["classes"]),
            "## Laws",
            *_laws(module),
            *_examples(module),
            "## Conformance",
            conformance(module.name),
            "## Citation",
            *([f"- {c}" for c in citations(module.doc)] or ["None: it is elementary."]),
        ]
    )


def _kind(module: Module) -> str:
    if module.writes_weights:
        return "It writes the weights itself: use it with `updsl.Optimizer`."
    return "It changes the gradient: use it with `updsl.attach`, with `updsl.Optimizer`, or as a stage."


def _parameters(parameters: list[dict[str, Any]]) -> str:
    if not parameters:
        return "None."
    rows = ((f"`{p['name']}`", f"`{_shown(p['value'])}`", _bounds(p), "no, constant" if p["constant"] else "yes") for p in parameters)
    return table(("name", "default", "bounds", "may change while training"), rows)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return format(value, ".16g")
        case "inf" | "-inf":
            return value
        case _:
            return f'"{value}"'


def _bounds(p: dict[str, Any]) -> str:
    return "" if (p["low"], p["high"]) == ("-inf", "inf") else f"{_shown(p['low'])} to {_shown(p['high'])}"


def _inputs(inputs: dict[str, str]) -> Iterator[str]:
    kinds = {
        "stream": "a tensor of the gradient's shape for each parameter",
        "samples": "the gradients of single samples, with a leading dimension",
        "matrix": "a matrix of its own shape for each parameter",
        "all": "one number",
        "group": "one number for each parameter group",
        "tensor": "one number for each parameter",
    }
    if inputs:
        yield "## Inputs"
        yield "Handed over by name at every step."
        yield table(("name", "what it is"), ((f"`{name}`", kinds.get(kind, f"one number per {kind}")) for name, kind in inputs.items()))


def _states(classes: list[dict[str, Any]]) -> Iterator[str]:
    states = classes[0]["states"]
    if not states:
        yield "None."
        return
    sizes = [_bytes(s) for s in states]
    matrix = f"for a {' × '.join(map(str, MATRIX.shape))} matrix with float32 gradients"
    known = sum(n for n in sizes if n is not None) / MATRIX.numel
    size = f"{known:.3g}" if known >= 1e-3 or not known else "Less than 0.001"
    yield f"{size} bytes per parameter, {matrix}{'' if None not in sizes else ', and what has the grid of an input'}."
    yield table(("state", "one value for each"), ((f"`{s['name']}`", _where(s)) for s in states))


def _bytes(s: dict[str, Any]) -> int | None:
    """Of a state of the matrix; None if it has the grid of an input."""
    named = {"rows": MATRIX.shape[0], "cols": MATRIX.shape[1], None: 1}
    if any("." in n for n in (s["rows"], s["cols"]) if isinstance(n, str)):
        return None
    rows, cols = (named[n] if n in named else int(n) for n in (s["rows"], s["cols"]))
    run = re.fullmatch(r"block\((\d+)\)", s["scope"])
    cells = -(-rows * cols // int(run[1])) if run else {"element": rows * cols, "row": rows, "column": cols}.get(s["scope"], 1)
    return cells * max(1, s["window"]) * BYTES[s["dtype"]]


def _where(s: dict[str, Any]) -> str:
    grid = f" of a {s['rows']} × {s['cols']} matrix" if s["scope"] == str(ELEMENT) and (s["rows"], s["cols"]) != ("rows", "cols") else ""
    where = {"element": "entry" + grid, "all": "run"}.get(s["scope"], s["scope"])
    return where + (f", the last {s['window']} of them" if s["window"] else "") + (f", {s['dtype']}" if s["dtype"] else "")


def _laws(module: Module) -> Iterator[str]:
    laws = [d.span.text for rule, d in laws_of(module.unit) if rule is module.rule and isinstance(d, syntax.Law)]
    yield "Claims about every stream of gradients. `updsl check` sees that they make sense; this version does not decide them."
    yield fenced("", "\n".join(laws))


def _examples(module: Module) -> Iterator[str]:
    examples = [d.span.text for rule, d in laws_of(module.unit) if rule is module.rule and isinstance(d, syntax.Example)]
    if examples:
        yield "## Examples"
        yield "`updsl check` runs them."
        yield fenced("", "\n".join(examples))


def conformance(name: str) -> str:
    """The rule's lines of docs/conformance.md, under the heads of their tables."""
    tables: dict[str, list[str]] = {}
    head: list[str] = []
    for line in CONFORMANCE.read_text(encoding="utf-8").split("\n") if CONFORMANCE.exists() else ():
        if not line.startswith("|"):
            head = []
        elif len(head) < 2:
            head.append(line)
        elif f"`{name}`" in (cell.strip() for cell in line.split("|")[1:3]):
            tables.setdefault("\n".join(head), []).append(line)
    found = [f"{head}\n" + "\n".join(lines) for head, lines in tables.items()]
    return "\n\n".join(["As [docs/conformance.md](../conformance.md) has it: relative errors." if found else "Not compared with other code.", *found])


def citations(doc: str) -> Iterator[str]:
    """Each identifier of a publication, with the authors and year before it, as a link."""
    text = " ".join(doc.split())
    for found in IDENTIFIER.finditer(text):
        said = AUTHORS.search(text[: found.start()])
        home = "https://arxiv.org/abs/" if found["arxiv"] else "https://doi.org/" if found["doi"] else ""
        link = found["arxiv"] or found["doi"] or found["url"]
        what = f"[{prose(found[0])}]({home}{link})" if link else prose(found[0])
        yield f"{prose(said[1])}, {what}" if said else what


# --- Markdown --------------------------------------------------------------------------------------------------------


def document(parts: Iterable[str]) -> str:
    """Parts apart by an empty line, the items of a list not."""
    text = "\n\n".join(parts) + "\n"
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fenced(language: str, text: str) -> str:
    """A block of code; its fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def prose(text: str) -> str:
    """Text in which Markdown and HTML see no markup but code in backquotes."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if i % 2 else re.sub(r"[\\*<>\[\]|#~`]|(?<!\w)_|_(?!\w)", r"\\\g<0>", part) for i, part in enumerate(parts))


def main() -> None:
    GALLERY.mkdir(exist_ok=True)
    written = pages()
    for old in GALLERY.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (GALLERY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
