"""Steps in functions under torch.compile: one operation in place, no graph breaks, no copies, the bits of eager steps; shared memory is refused."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

import updsl

SHAPES = {"a.weight": (40, 30), "a.bias": (30,), "b": (3, 4, 5)}
OPTIMIZER = """\
rule r(a = 0.3, beta = 0.9):
    input loss per all, scale per tensor
    state m = 0
    m ← beta*m + (1 - beta)*g
    watch size = norm(m) per tensor
    watch grouped = norm(m) per group
    watch whole = norm(m) per all
    w ← w - lr*a*m*loss*scale
"""
TRANSFORM = "rule r(a = 1):\n    watch size = norm(w) per all\n    return clip norm > a*norm(w) → ema(0.9)\n"
PLAIN = "rule r(a = 1):\n    return clip norm > a → ema(0.9)\n"
RULES = {"optimizer": OPTIMIZER, "reads weights": TRANSFORM, "plain": PLAIN}
BACKENDS = ("cpp", "torch", "interpret")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def tensors(salt: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(salt)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Job:
    """A training step of a model whose gradients have the same bits however they are computed: of Σ w·x² they are x². The gradients after it are kept."""

    def __init__(self, rule: str, backend: str):
        self.w = {name: torch.nn.Parameter(x) for name, x in tensors(0).items()}
        self.rule = updsl.parse(RULES[rule])
        self.y = updsl.compile(self.rule, self.w, backend=backend, lr=0.1, groups=[{"params": ["b"], "lr": 0.5}])

    @staticmethod
    def loss(w: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum((w[name] * x[name] * x[name]).sum() for name in w)  # type: ignore[return-value]

    def inputs(self, x: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"loss": x["b"][0, 0, 0], "scale": dict.fromkeys(self.w, 0.5)} if self.rule.inputs else {}

    def step(self, x: dict[str, torch.Tensor], lr: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        g = torch.func.grad(self.loss)(self.w, x)
        return self.y.step(g, lr, **self.inputs(x)), g

    def all(self) -> list[torch.Tensor]:
        """Everything that is kept."""
        return [*self.w.values(), *(x for cells in self.y.state.values.values() for x in cells.values())]


def numbers(watches: dict[str, Any]) -> dict[Any, float]:
    return {(label, key): float(x) for label, cell in watches.items() for key, x in (cell.items() if isinstance(cell, dict) else [("", cell)])}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compared(rule: str, backend: str, compiler: str) -> None:
    """Five steps, with other numbers at each, of a compiled function and of the same function not compiled."""
    mine, theirs = Job(rule, backend), Job(rule, backend)
    step = torch.compile(mine.step, fullgraph=True, backend=compiler)
    for k in range(5):
        x, lr = tensors(k + 1), torch.tensor(0.1 / (k + 1))
        for job in (mine, theirs):
            job.y.set(a=0.2 + 0.1 * k)
        with torch._dynamo.config.patch(error_on_recompile=k > 0):
            (watches, g), (expected, h) = step(x, lr), theirs.step(x, lr)
        assert numbers(watches) == numbers(expected)
        assert same(list(g.values()), list(h.values()))
        assert same(mine.all(), theirs.all())
    assert int(mine.y.steps) == mine.y.state.run == 5
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_traced_step_has_the_bits_of_an_eager_one(rule: str, backend: str) -> None:
    compared(rule, backend, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_step_under_inductor_has_the_bits_of_an_eager_one(rule: str) -> None:
    compared(rule, "cpp", "inductor")


# --- copies ------------------------------------------------------------------------------------------------------------


def code_of(f: Callable[..., Any], *args: Any) -> str:
    """What Inductor calls for a function, its kernels' texts apart."""
    _, (code, *more) = run_and_get_code(torch.compile(f, fullgraph=True), *args)
    assert not more
    assert not counters["graph_break"]
    return code[code.index("def call(") : code.index("runner = ")]


def made(code: str) -> list[int]:
    """Sizes of the buffers that the code makes."""
    shapes = re.findall(r"= empty_strided_cpu\(\(([^)]*)\)", code)
    return [int(torch.tensor([int(n) for n in shape.split(",") if n.strip()]).prod()) for shape in shapes]


@pytest.mark.slow
def test_nothing_is_copied() -> None:
    """Beside the gradients themselves, no buffer of a tensor's size is made, and the operation is handed the weights' own memory."""
    job = Job("optimizer", "cpp")
    code = code_of(job.step, tensors(1), torch.tensor(0.1))
    assert sorted(n for n in made(code) if n > 1) == sorted(p.numel() for p in job.w.values())
    assert "], [arg0_1, arg1_1, arg2_1], [" in code
    assert not re.search(r"clone|copy", re.sub(r"#.*", "", code))
    assert not counters["inductor"]["possibly_missed_reinplacing_opportunities"]


@pytest.mark.slow
def test_nothing_is_copied_of_a_gradient_by_autograd() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Tanh(), torch.nn.Linear(20, 50))
    y = updsl.compile("adamw", model, lr=0.01)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().sum()
        names, params = zip(*model.named_parameters(), strict=True)
        y.step(dict(zip(names, torch.autograd.grad(loss, params), strict=True)))
        return loss.detach()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        x = torch.randn(8, 30)
        code = code_of(step, x)
        compiled = torch.compile(step, fullgraph=True)
        assert compiled(x) > compiled(x) > compiled(x)
    assert sorted(n for n in made(code) if n >= 600) == [600, 1000]
    assert not re.search(r"clone|copy", re.sub(r"#.*", "", code))
    assert y.state.run == 4


@pytest.mark.slow
def test_nothing_is_copied_of_flat_weights() -> None:
    flat = updsl.flatten(tensors(0))
    y = updsl.compile(updsl.parse(OPTIMIZER), flat, lr=0.1)
    scale = dict.fromkeys(SHAPES, 0.5)

    def step(x: dict[str, torch.Tensor]) -> None:
        g = torch.func.grad(lambda buffers: Job.loss(flat.split(buffers), x))(flat.buffers)
        y.step_flat(g, loss=1.0, scale=scale)

    code = code_of(step, tensors(1))
    (size,) = map(len, flat.buffers.values())
    assert [n for n in made(code) if n > 1] == [size]
    (call,) = re.findall(r"torch\.ops\.updsl\.step_flat\.default\((.*)\)\n", code)
    assert re.search(r"\[buf\d+\], \[arg\d+_1\]", call)


# --- flat --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_traced_step_of_buffers_is_that_of_tensors(rule: str, backend: str) -> None:
    listed = Job(rule, backend)
    flat = updsl.flatten(tensors(0))
    y = updsl.compile(listed.rule, flat, backend=backend, lr=0.1, groups=[{"params": ["b"], "lr": 0.5}])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: dict[str, torch.Tensor], lr: torch.Tensor) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        g = torch.func.grad(lambda buffers: Job.loss(flat.split(buffers), x))(flat.buffers)
        return y.step_flat(g, lr, **listed.inputs(x)), g

    for k in range(3):
        x, lr = tensors(k + 1), torch.tensor(0.1 / (k + 1))
        with torch._dynamo.config.patch(error_on_recompile=k > 0):
            watches, g = step(x, lr)
        expected, h = listed.step(x, lr)
        assert numbers(watches) == numbers(expected)
        assert same(list(flat.split(g).values()), list(h.values()))
        assert same(list(flat.params.values()), [p.detach() for p in listed.w.values()])


def test_weights_that_are_flat_and_read_in_the_function_too() -> None:
    flat, other = updsl.flatten(tensors(0)), tensors(0)
    y, z = (updsl.compile(updsl.parse("rule r:\n    w ← w - lr*g\n"), params, lr=0.1) for params in (flat, other))

    def step(y: updsl.Compiled, w: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        y.step(torch.func.grad(Job.loss)(w, x))
        return w["b"] * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for k in range(3):
        assert torch.equal(compiled(y, flat.params, tensors(k + 1)), step(z, other, tensors(k + 1)))
    assert same(list(flat.params.values()), list(other.values()))


# --- numbers, order, what is kept alive ----------------------------------------------------------------------------------


def test_numbers_change_without_a_new_graph() -> None:
    w, v = {"x": torch.ones(3)}, {"x": torch.ones(3)}
    text = "rule r:\n    input loss per all\n    w ← w - lr*loss*g\n"
    y, z = (updsl.compile(updsl.parse(text), params) for params in (w, v))
    step = torch.compile(lambda g, lr, loss: y.step({"x": g}, lr, loss=loss), fullgraph=True, backend="aot_eager")
    for k in range(6):
        with torch._dynamo.config.patch(error_on_recompile=k > 1):
            step(torch.ones(3), 0.1 / (k + 1), 2.0 / (k + 2))
        z.step({"x": torch.ones(3)}, 0.1 / (k + 1), loss=2.0 / (k + 2))
        assert torch.equal(w["x"], v["x"])


def test_steps_are_taken_in_order_even_if_nobody_reads_what_they_give() -> None:
    y = updsl.compile("ema", {"x": torch.zeros(2)})
    z = updsl.compile("ema", {"x": torch.zeros(2)})

    @torch.compile(fullgraph=True, backend="aot_eager")
    def steps(a: torch.Tensor) -> torch.Tensor:
        y.step({"x": a * 2})
        y.step({"x": a * 3})
        return a + 1

    steps(torch.ones(2))
    for k in (2.0, 3.0):
        z.step({"x": torch.full((2,), k)})
    assert y.state.run == int(y.steps) == 2
    assert same([x for c in y.state.values.values() for x in c.values()], [x for c in z.state.values.values() for x in c.values()])


def test_a_tensor_without_a_gradient_takes_no_part() -> None:
    w = {"x": torch.ones(2), "y": torch.ones(3), "z": torch.ones(0)}
    y = updsl.compile(updsl.parse("rule r:\n    watch size = norm(g) per tensor\n    w ← w - lr*g\n"), w, lr=0.5)
    step = torch.compile(lambda g: y.step({"y": g, "x": None, "z": torch.ones(0)}), fullgraph=True, backend="aot_eager")
    assert numbers(step(torch.ones(3))) == {("size", "y"): pytest.approx(3**0.5)}
    assert [x.tolist() for x in w.values()] == [[1.0, 1.0], [0.5, 0.5, 0.5], []]


def test_per_sample_gradients_whose_mean_is_the_gradient() -> None:
    text = "rule r:\n    input samples\n    watch size = norm(g) per tensor\n    w ← w - lr*sample_mean(samples)\n"
    w, v = {"x": torch.ones(3)}, {"x": torch.ones(3)}
    y, z = (updsl.compile(updsl.parse(text), params, lr=0.1) for params in (w, v))
    samples = torch.randn(4, 3)
    step = torch.compile(lambda s: y.step({}, samples={"x": s}), fullgraph=True, backend="aot_eager")
    assert numbers(step(samples)) == numbers(z.step({}, samples={"x": samples}))
    assert torch.equal(w["x"], v["x"])


def test_a_function_keeps_the_rule_it_steps_and_a_rule_is_freed_with_it() -> None:
    from updsl.runtime.operation import _alive

    before = len(_alive)

    def made() -> Callable[..., Any]:
        y = updsl.compile("ema", {"x": torch.zeros(2)})
        return torch.compile(lambda g: y.step({"x": g}), fullgraph=True, backend="aot_eager")

    step = made()
    gc.collect()
    step(torch.ones(2))
    step(torch.ones(2))
    assert len(_alive) == before + 1
    del step
    torch.compiler.reset()
    gc.collect()
    assert len(_alive) == before


def test_the_operations_are_what_torch_expects_of_operations() -> None:
    y = updsl.compile(updsl.parse("rule r:\n    watch size = norm(g) per all\n    w ← w - lr*g\n"), updsl.flatten({"x": torch.ones(3)}), lr=0.1)
    from updsl.runtime.operation import planned, step, step_flat

    for operation, name, flat in ((step, "x", False), (step_flat, "float32", True)):
        call, *_ = planned(y.handle, (name,), None, (), flat)
        grads = [torch.ones(3 if not flat else 16)]
        torch.library.opcheck(operation, (y.handle, call, grads, [y.flat.buffers["float32"]], [], None, y.steps), test_utils=["test_schema", "test_faketensor"])


# --- arguments that share memory ---------------------------------------------------------------------------------------


def refused(message: str) -> Any:
    return pytest.raises(updsl.UpdslError, match=message)


WRITES = "rule r:\n    w ← w - lr*g\n"


def test_weights_that_share_memory_are_refused_when_a_rule_that_writes_them_is_compiled() -> None:
    x = torch.ones(4)
    for params in ({"x": x, "y": x}, {"x": x, "y": x[1:]}, {"x": x[0].expand(3)}):
        with refused("the memory of `[xy]`"):
            updsl.compile(updsl.parse(WRITES), params, lr=0.1)
        updsl.compile(updsl.parse("2*g"), params)
    updsl.compile(updsl.parse(WRITES), {"x": x[:2], "y": x[2:]}, lr=0.1)


def test_arguments_that_share_memory_are_refused_in_an_eager_step_and_in_a_traced_one() -> None:
    memory = torch.ones(5)
    w = {"x": memory[:4], "y": torch.ones(4)}
    y = updsl.compile(updsl.parse(WRITES), w, lr=0.1)
    t = updsl.compile(updsl.parse("2*g"), w)

    def both(z: updsl.Compiled, f: Callable[[torch.Tensor], dict[str, torch.Tensor]], message: str) -> None:
        g = torch.ones(8)
        with refused(message):
            z.step(f(g))
        with refused(message):
            torch.compile(lambda g: z.step(f(g * 1)), fullgraph=True, backend="aot_eager")(g)
        assert z.state.run == 0
        assert torch.is_grad_enabled()

    both(t, lambda g: {"x": g[:4], "y": g[:4]}, "the gradient of `y` and of `x` are the same memory")
    both(t, lambda g: {"x": g[:4], "y": g[3:7]}, "the gradient of `y` and of `x` overlap in memory")
    with refused("the memory of `x` and the gradient of `y` are the same memory"):
        y.step({"x": torch.ones(4), "y": w["x"]})
    with refused("the memory of `x` and the gradient of `y` overlap in memory"):
        y.step({"x": torch.ones(4), "y": memory[1:]})
    assert [x.tolist() for x in w.values()] == [[1.0] * 4] * 2


def test_arguments_that_come_to_share_memory_are_refused_after_steps_that_were_fine() -> None:
    w = {"x": torch.ones(4), "y": torch.ones(4)}
    y = updsl.compile(updsl.parse(WRITES + "    return 2*g\n"), w, lr=0.1)
    whole = torch.ones(8)
    for _ in range(3):
        y.step({"x": whole[:4], "y": whole[4:]})
    with refused("overlap"):
        y.step({"x": whole[:4], "y": whole[2:6]})
    with refused("the gradient of `x` and the weight of `y` are the same memory"):
        y.step({"x": w["y"], "y": torch.ones(4)})
    y.step({"x": whole[4:], "y": whole[:4]})
    assert y.state.run == 4


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_weights_and_gradients_may_move_between_steps(backend: str) -> None:
    w, g = {"x": torch.ones(4)}, {"x": torch.ones(4)}
    y = updsl.compile(updsl.parse(WRITES + "    return 2*g\n"), w, backend=backend, lr=1.0)
    for _ in range(3):
        y.step(g)
    w["x"].data, g["x"].data = torch.full((4,), 10.0), torch.full((4,), 3.0)
    y.step(g)
    assert (w["x"].tolist(), g["x"].tolist()) == ([7.0] * 4, [6.0] * 4)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_an_input_may_be_a_gradient(backend: str) -> None:
    """It is read as it was before the step."""
    rule = updsl.parse("rule r:\n    input h\n    return g + 10*h\n")
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    y = updsl.compile(rule, {"a": torch.zeros(2), "b": torch.zeros(2)}, backend=backend)
    y.step({"a": a, "b": b}, h={"a": b, "b": a})
    assert (a.tolist(), b.tolist()) == ([31.0, 42.0], [13.0, 24.0])
