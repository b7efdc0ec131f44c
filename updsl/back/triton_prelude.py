"""What every generated Triton file begins with: fields of tables, and the functions that ops.py names."""

PRELUDE = r'''
import triton
import triton.language as tl


@triton.jit
def number(at):
    """The float64 in a field."""
    return tl.load(at.to(tl.pointer_type(tl.float64)))


@triton.jit
def put(at, x, inside):
    """Into a field, or into float64 memory."""
    tl.store(at.to(tl.pointer_type(tl.float64)), x.to(tl.float64), inside)


@triton.jit
def array(at, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The memory that a field points to; aligned: to 16 bytes."""
    pointer = tl.load(at).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def truth(x):
    """Whether x is not 0, as a number that Triton's interpreter can spread to blocks."""
    return (x != 0).to(tl.int32) != 0


@triton.jit
def f64(x: tl.constexpr):
    return tl.sum(tl.full((1,), x, tl.float64), 0)


@triton.jit
def f32(x: tl.constexpr):
    return tl.sum(tl.full((1,), x, tl.float32), 0)


@triton.jit
def holds(x: tl.constexpr):
    return tl.to_tensor(x)


@triton.jit
def bfloat(x):
    """To nearest, ties to even, in Triton's interpreter too."""
    single = x.to(tl.float32)
    bits = single.to(tl.int32, bitcast=True)
    bits = tl.where(single == single, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000)
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def divide(x, y):
    """x / y, rounded once."""
    if x.dtype == tl.float32 and y.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def root(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def square(x):
    return x * x


@triton.jit
def smaller(x, y):
    x, y = tl.broadcast(x, y)
    return tl.where((x < y) | (x != x), x, y)


@triton.jit
def larger(x, y):
    x, y = tl.broadcast(x, y)
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def sign(x):
    """0, and not -0, of both zeros."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x + 0.0)).to(x.dtype)


@triton.jit
def is_finite(x):
    return x - x == 0


@triton.jit
def average(b, m, c, x):
    """b * m + c * x, where b + c = 1; in float32 m + c * (x - m), from the nearer end, if that is finite and not 0 (whose sign would be lost)."""
    plain = b * m + c * x
    if plain.dtype == tl.float64:
        return plain
    else:
        near = tl.where(c < 0.5, m + c * (x - m), x + (c - 1) * (x - m))
        return tl.where(is_finite(near) & (near != 0), near, plain)


@triton.jit
def sigmoid(x):
    e = tl.exp(-x)
    return divide(tl.where(e == e, 1.0, e).to(x.dtype), 1 + e)


@triton.jit
def tanh(x):
    """Of what is near 0 by its series, where the quotient would lose digits."""
    wide = x.to(tl.float64)
    e = tl.exp(-2 * tl.abs(wide))
    far = (1 - e) / (1 + e)
    near = tl.abs(wide) * (1 - wide * wide * (1 / 3 - wide * wide * (2 / 15)))
    y = tl.where(tl.abs(wide) < 0.003, near, far)
    return tl.where(wide < 0, -y, tl.where(wide == 0, wide, y)).to(x.dtype)


@triton.jit
def nearest(x):
    """Halves to even."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2 * tl.floor(low * 0.5)
    y = tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), low + 1, low)
    return tl.where(x < 0, -tl.abs(y), y)


@triton.jit
def modulo(a, b):
    r = a % b
    return tl.where(r != 0, tl.where((r < 0) != (b < 0), r + b, r), tl.where(b < 0, -tl.abs(r), tl.abs(r)))


@triton.jit
def power(x, y):
    """x^y as IEEE 754 has it; NaN if one is."""
    a, b = tl.broadcast(x.to(tl.float64), y.to(tl.float64))
    whole = tl.floor(b) == b
    odd = whole & (tl.floor(b * 0.5) * 2 != b)
    size = tl.exp2(b * tl.log2(tl.abs(a)))
    size = tl.where((b == 0) | (tl.abs(a) == 1), 1.0, size)
    signed = tl.where((a.to(tl.int64, bitcast=True) < 0) & odd, -size, size)
    signed = tl.where((a < 0) & (whole == 0) & (tl.abs(a) < float("inf")), float("nan"), signed)
    return tl.where((a != a) | (b != b), a + b, signed).to(x.dtype)


@triton.jit
def scaled(x, part: tl.constexpr):
    """The square of x: of what is small (part 0) and of what is large (part 2) scaled by a power of two."""
    size = tl.abs(x)
    if part == 0:
        return tl.where(size < 1e-140, square(x * f64(2.0**600)), 0.0)
    elif part == 2:
        return tl.where(size > 1e140, square(x * f64(2.0**-600)), 0.0)
    else:
        return tl.where((size < 1e-140) | (size > 1e140), 0.0, x * x)


@triton.jit
def root_of(small, middle, large):
    """Of the sum of scaled squares: what is much smaller than another part does not count."""
    low = tl.where(middle > 0, tl.sqrt(middle + small * f64(2.0**-600) * f64(2.0**-600)), tl.sqrt(small) * f64(2.0**-600))
    high = tl.sqrt(large + middle * f64(2.0**-600) * f64(2.0**-600)) * f64(2.0**600)
    size = tl.where(large > 0, high, low)
    return tl.where(middle == middle, size, middle)


@triton.jit
def total(x, axis: tl.constexpr):
    """The sum along an axis, in a fixed order."""
    return tl.sum(x, axis, keep_dims=True)


@triton.jit
def greatest(x, axis: tl.constexpr):
    """NaN if one is."""
    most = tl.max(x, axis, keep_dims=True)
    return tl.where(tl.max((x != x).to(tl.int32), axis, keep_dims=True) != 0, float("nan"), most)


@triton.jit
def least(x, axis: tl.constexpr):
    return -greatest(-x, axis)


@triton.jit
def anchor(x, inside, axis: tl.constexpr):
    """One of the finite x, and 0 if there is none: sums of differences from it lose no digits."""
    finite = tl.where(is_finite(x), x, -float("inf"))  # a number where x is one: not yet spread
    most = tl.max(tl.where(inside, finite, -float("inf")), axis, keep_dims=True)
    return tl.where(most == -float("inf"), 0.0, most).to(tl.float64)
'''
