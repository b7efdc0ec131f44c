"""The `updsl` command. Every subcommand imports what it needs when it runs, so that `updsl check` starts fast."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import click
from click.core import ParameterSource

from updsl import __version__
from updsl.checked import checked
from updsl.core.diagnostic import Diagnostic, InternalError, UpdslError, printable, render, render_all, to_github, to_json

FOUND, USAGE, INTERNAL, INTERRUPTED = 1, 2, 3, 130
"""Exit codes, 0 apart: mistakes in a rule; a command or file that makes no sense; a mistake of ours; Ctrl-C."""

OUTPUT = click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", help="How to print the result.")
TENSORS = click.option("--tensor", "tensors", metavar="NAME=SHAPE", multiple=True, help="For this tensor, such as lm_head.weight=512x64. May be repeated.")


def main() -> None:
    """Run the command; never a traceback, but for UPDSL_TRACEBACK=1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The command's exit code."""
    as_json = "--format=json" in arguments or ("--format", "json") in pairwise(arguments)
    try:
        return cli.main(arguments, prog_name="updsl", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help(), error=True)
        return USAGE
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "updsl"
        say(f"updsl: {error.format_message()}" + (f"\n  = help: {path} --help" if isinstance(error, click.UsageError) else ""), error=True)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except UpdslError as error:
        if as_json:
            say_json({"diagnostics": [to_json(d) for d in error.diagnostics]})
        else:
            say(render_all(error.diagnostics), error=True)
        return exit_code(error.diagnostics)
    except Exception as error:
        if os.environ.get("UPDSL_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _silence(sys.stdout)
            say(f"updsl: cannot print: {error.strerror}", error=True)
            return USAGE
        message = str(error) if isinstance(error, InternalError) else str(InternalError(f"{type(error).__name__}: {error}"))
        say(f"{message}\n  = help: UPDSL_TRACEBACK=1 shows where", error=True)
        return INTERNAL


def exit_code(diagnostics: list[Diagnostic]) -> int:
    from updsl.front.files import UNKNOWN, UNREADABLE

    if any(d.code in (UNREADABLE, UNKNOWN) for d in diagnostics):
        return USAGE
    return FOUND if any(d.severity == "error" for d in diagnostics) else 0


def say(text: str, error: bool = False) -> None:
    """Print; where nobody reads any more, do nothing."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as failure:
        _silence(stream)
        if not error and not isinstance(failure, BrokenPipeError):
            raise click.ClickException(f"cannot print: {failure.strerror}") from None


def _silence(stream: Any) -> None:
    """Let what is printed from here on, and what waits to be, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_json(data: Any) -> None:
    say(json.dumps(data, indent=2, allow_nan=False))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="updsl")
def cli() -> None:
    """Update rules as short texts: check them, look at them, train with them.

    A RULE is the path of a .upd file, or a name that `updsl list` shows.
    """


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--laws", is_flag=True, help="Decide the laws.")
@click.option("--examples", type=click.IntRange(1), default=200, show_default=True, help="Streams of gradients that a law is tried on.")
@click.option("--seed", type=int, help="Of the streams; else each law has its own.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=60, show_default=True, help="Seconds for a law, whose verdict is then what was tested."
)
@click.option("--dtype", type=click.Choice(["float64", "float32", "bfloat16", "float16"]), help="Of gradients and weights.  [float64, then float32]")
@click.option("--snippet", is_flag=True, help="Print Python that runs what refutes a law.")
@click.option("--lint", is_flag=True, help="Warn of what is true of most published methods, too: bad gradients that stay in averages of entries.")
@click.option("--mutants", is_flag=True, help="Which wrong variants of the text laws and examples tell from it.")
@click.option("--strict", is_flag=True, help="Warnings, vacuous laws, laws that fail in float32 alone, and variants that survive, count as mistakes.")
@click.option("--format", "output", type=click.Choice(["text", "json", "github"]), default="text", help="How to print the result.")
def check(
    files: tuple[str, ...],
    laws: bool,
    examples: int,
    seed: int | None,
    timeout: float,
    dtype: str | None,
    snippet: bool,
    lint: bool,
    mutants: bool,
    strict: bool,
    output: str,
) -> int:
    """Find mistakes in rule files, and run their examples.

    Exit code 0: none, or warnings alone; 1: mistakes, or a law that is refuted; 2: a file that cannot be read.
    """
    if not laws and (alone := _given("examples", "seed", "timeout", "dtype", "snippet")):
        raise click.UsageError(f"`--{alone}` is about deciding laws: add `--laws`")
    found = [checked(file, lint) for file in files]
    for one in found:
        if output == "text":
            say("\n\n".join(map(render, one.diagnostics)) + "\n" if one.diagnostics else f"{one.file}: ok")
        if laws:
            for verdict in one.decide(examples, seed, timeout, dtype):
                if output == "text":
                    say("\n".join(f"  {line}" for line in str(verdict).split("\n")))
                    if snippet and verdict.counterexample:
                        say(f"\n{verdict.counterexample.snippet()}")
        if mutants and not one.errors:
            report = one.vary()
            if output == "text":
                say("\n".join(f"  {line}" for line in str(report).split("\n")))
    every = [d for one in found for d in one.diagnostics]
    match output:
        case "json":
            errors = sum(one.errors for one in found)
            say_json({"files": [one.data() for one in found], "errors": errors, "warnings": len(every) - errors})
        case "github":
            for d in every:
                say(to_github(d))
    failed = any(one.refuted for one in found) or (strict and any(one.diagnostics or one.doubtful for one in found))
    return exit_code(every) or (FOUND if failed else 0)


@cli.command(short_help="What a rule computes and keeps, or what an error means.")
@click.argument("target", metavar="RULE|CODE")
@TENSORS
@click.option("--sharding", type=click.Choice(["fsdp"]), help="Tell the collectives of a step, too, of parameters in parts of rows.")
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True, help="How many ranks have a part of each parameter.")
@OUTPUT
def explain(target: str, tensors: tuple[str, ...], sharding: str | None, ranks: int, output: str) -> None:
    """What a rule computes and keeps, or what an error means (by the word in its brackets)."""
    from updsl.front.files import is_path, library

    page = _error_page(target)
    if page is None or is_path(target) or target.casefold() in library().files:
        from updsl.explanation import explanation, to_text
        from updsl.explanation import sharding as of_ranks

        module, given = _load(target, also=_error_codes), _tensors(tensors)
        found = explanation(module, given)
        if sharding is not None:
            found |= of_ranks(module, {t.name: t for t in given}, ranks)
        say_json(found) if output == "json" else say(to_text(found))
    else:
        text = page.read_text(encoding="utf-8").rstrip()
        say_json({"code": target, "text": text}) if output == "json" else say(text)


def _tensors(written: tuple[str, ...]) -> list:
    """NAME=4x3 as tensors; without any, the typical ones."""
    from updsl.core.frame import Tensor
    from updsl.explanation import TYPICAL

    pairs = [text.rpartition("=")[::2] for text in written]
    try:
        found = [Tensor(name, tuple(int(d) for d in shape.split("x") if shape)) for name, shape in pairs]
    except ValueError:
        raise click.UsageError("a tensor is given as NAME=SHAPE, such as lm_head.weight=512x64") from None
    if any(not t.name or min(t.shape, default=1) < 1 for t in found) or len({t.name for t in found}) < len(found):
        raise click.UsageError("each tensor has a name of its own, and sizes of at least 1")
    return found or list(TYPICAL)


def _error_codes() -> list[str]:
    from updsl.core.resources import folder

    return sorted(p.stem for p in folder("docs/errors").glob("*.md"))


def _error_page(code: str) -> Path | None:
    from updsl.core.resources import folder

    return folder("docs/errors") / f"{code}.md" if code in _error_codes() else None


def _load(name_or_path: str, also: Callable[[], list[str]] = list):
    """The rule; an unknown name is compared with `also` too."""
    from updsl.core.diagnostic import did_you_mean
    from updsl.front.files import UNKNOWN, library
    from updsl.pipeline import from_file

    try:
        return from_file(name_or_path)
    except UpdslError as error:
        first = error.diagnostics[0]
        if first.code != UNKNOWN or not also():
            raise
        help = did_you_mean(name_or_path, [*library().files, *also()]) or first.help
        raise UpdslError(Diagnostic(UNKNOWN, f"`{name_or_path}` is neither a rule of the library nor the code of an error", help=help)) from None


@cli.command("list")
@OUTPUT
def list_(output: str) -> None:
    """The rules of the library, a line each."""
    from updsl.front.files import library

    rules = library().rules
    files = {name: path for name, path in library().files.items() if name in rules}
    docs = {name: (rules[name].doc or "").strip().split("\n")[0] for name in files}
    if output == "json":
        say_json({name: {"doc": docs[name], "kind": path.parent.name} for name, path in files.items()})
        return
    width = max(map(len, docs), default=0)
    for kind in sorted({p.parent.name for p in files.values()}):
        say("\n".join([f"{kind}/", *(f"  {name:<{width}}  {docs[name]}".rstrip() for name, p in files.items() if p.parent.name == kind), ""]))


def _given(*options: str) -> str | None:
    """The first of these options of the command that its user has given."""
    context = click.get_current_context()
    return next((n for n in options if context.get_parameter_source(n) is ParameterSource.COMMANDLINE), None)


@cli.command()
@click.argument("rule", metavar="RULE")
@click.option("--after", type=click.Choice(["text", "syntax", "program"]), help="What the rule is after that stage.")
@click.option("--source", metavar="BACKEND", help="The code that this backend generates.")
@click.option("--latex", "as_latex", is_flag=True, help="The rule in the literature's notation, as an `aligned` block.")
@TENSORS
@OUTPUT
def show(rule: str, after: str | None, source: str | None, as_latex: bool, tensors: tuple[str, ...], output: str) -> None:
    """A rule's text, or the rule on its way from text to code, or as LaTeX."""
    if (after is not None) + (source is not None) + as_latex > 1:
        raise click.UsageError("--after, --source and --latex exclude each other")
    module, found = _load(rule), _tensors(tensors)
    if after is None and source is None:
        from updsl.front.latex import to_latex
        from updsl.laws.check import unit_mistakes

        mistakes = [d for d in unit_mistakes(module.unit) if d.severity == "error"] if as_latex else []
        if mistakes:
            raise UpdslError(mistakes)
        text = to_latex(module) if as_latex else module.text
        say_json({module.name: text}) if output == "json" else say("\n".join(map(printable, text.rstrip().split("\n"))))
        return
    from updsl.explanation import stage, written

    texts = written(module, source, found) if source is not None else stage(module, after or "text", found)
    say_json(texts) if output == "json" else say("\n\n".join(f"# {name}\n{text.rstrip()}" for name, text in texts.items()))


START = '''rule {name}(z_max = 2.5):
    """{name}: what it does, and the paper it comes from."""
    return norm per column → clip z > z_max → ema

law odd: rule(-g) == -rule(g)
'''


@cli.command()
@click.argument("name")
@click.option("--like", metavar="RULE", help="Start from this rule of the library, or this file.")
def new(name: str, like: str | None) -> None:
    """Write NAME.upd, a rule to start from. It overwrites nothing."""
    from updsl.front.companions import started_like
    from updsl.front.files import SUFFIX
    from updsl.front.unit import FUNCTIONS

    path = Path(name if name.endswith(SUFFIX) else name + SUFFIX)
    if not path.stem.isidentifier():
        raise click.UsageError(f"a rule cannot be called {path.stem!r}: a name is letters, digits and `_`")
    if path.stem in FUNCTIONS:
        raise click.UsageError(f"a rule cannot be called `{path.stem}`: that is a function")
    path = path.with_name(normalize("NFKC", path.name))
    text = START.format(name=path.stem) if like is None else started_like(_load(like), path.stem)
    _refuse_unfit(path.stem, text)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(f"{path} is there already") from None
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None
    say(f"{path}: written; next: updsl check {path}")


def _refuse_unfit(name: str, text: str) -> None:
    """Raises UsageError if a rule of this name, with this text, would not check: the name is reserved, built in, or used in the text for something else."""
    from updsl.core.source import Source
    from updsl.front.files import library
    from updsl.front.unit import load_unit
    from updsl.laws.check import unit_mistakes

    unit = None
    try:
        unit = load_unit(Source(f"{name}.upd", text), name, library().find)
        found = list(unit_mistakes(unit))
    except UpdslError as error:
        found = error.diagnostics
    mistake = next((d for d in found if d.severity == "error"), None)
    if mistake is None:
        return
    why, at = mistake.message, mistake.span
    if mistake.code == "shadowed-name" and name in at.text and unit is not None and unit.main is not None and at != unit.main.name_span:
        why = f"its text has a name `{name}` of its own, in `{at.source.lines[at.line - 1].strip()}`"
    raise click.UsageError(f"a rule like this cannot be called `{name}`: {why}")


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit code 1 if a file is not formatted.")
def fmt(files: tuple[str, ...], only_check: bool) -> int:
    """Format rule files in place: spaces, symbols, indentation. Comments stay."""
    from updsl.front.files import read_source
    from updsl.front.format import format_source

    code = 0
    for file in files:
        source = read_source(Path(file))
        formatted = format_source(source)
        if formatted == source.text:
            continue
        if only_check:
            say(f"{file}: not formatted")
            code = FOUND
            continue
        try:
            Path(file).write_text(formatted, encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"cannot write {file}: {error.strerror}") from None
        say(f"{file}: formatted")
    return code


@cli.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--examples", type=click.IntRange(1), default=200, show_default=True, help="Streams of gradients that both are run on, where algebra does not decide."
)
@click.option("--seed", type=int, help="Of the streams; else one that the two texts give.")
@OUTPUT
def diff(first: str, second: str, examples: int, seed: int | None, output: str) -> int:
    """Whether the rules A and B do the same; else the smallest stream found on which they differ, and how their texts do.

    Exit code 0: equal, by algebra or on every stream tried; 1: different; 2: a rule that cannot be read.
    """
    from updsl.laws.check import defaults
    from updsl.laws.equal import compared

    a, b = _load(first), _load(second)
    found = compared(a, b, defaults(a), defaults(b), examples, seed)
    say_json(found.data()) if output == "json" else say("\n".join(map(printable, str(found).split("\n"))))
    return 0 if found else FOUND


@cli.command()
@click.argument("rule", metavar="RULE")
@click.option("--backend", "backends", metavar="NAME", multiple=True, help="Measure this one beside torch. May be repeated.  [auto]")
@click.option(
    "--set",
    "tensors",
    metavar="SET",
    default="P2",
    show_default=True,
    help="P1: GPT-2 small, P2: 200 × 64×64, P3: 4096×4096, P4: Llama 7B ÷ 8, N300: 300 mixed.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=9, show_default=True, help="Rounds, in each of which every backend is measured.")
@OUTPUT
def bench(rule: str, backends: tuple[str, ...], tensors: str, rounds: int, output: str) -> None:
    """How fast RULE is: its backends against eager torch, on tensors like a model's.

    First each is compared with the float64 interpreter. Threads are torch's: OMP_NUM_THREADS=1 measures with one.
    """
    from updsl.bench.machine import machine
    from updsl.bench.report import report
    from updsl.bench.rules import bench
    from updsl.bench.sets import SETS, shapes_of
    from updsl.runtime.rule import load

    try:
        found = bench(load(rule), shapes_of(tensors), backends or ("auto",), rounds)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if output == "json":
        say_json({"set": tensors, **found, "machine": machine()})
    else:
        say(report(found, f"{tensors} ({SETS[tensors]})" if tensors in SETS else tensors))


@cli.command()
@click.argument("rule", metavar="[RULE]", default="zclip")
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="Training steps of each run.  [300]")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Runs of each method.  [2]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate at its highest.  [0.01]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("train-result"), show_default=True, help="Folder for plot and numbers.")
@click.option("--quick", is_flag=True, help="A few seconds instead of a minute: to see that it works.")
@OUTPUT
def train(rule: str, steps: int | None, seeds: int | None, lr: float | None, out: Path, quick: bool, output: str) -> int:
    """Train a small model on text, with trouble: does RULE help?

    A byte-level transformer learns the source of Python's own standard library at a high learning rate, and now and then a batch is read from
    binary files. The same seeds are run with no clipping, with clip_grad_norm_(1.0), and with RULE in front of the same optimizer.
    """
    from updsl.train.command import command

    complete = command(rule, steps=steps, seeds=seeds, lr=lr, out=out, quick=quick, as_json=output == "json", say=say)
    return 0 if complete else INTERRUPTED
