"""Rule texts of the language's definition, each a complete file, and laws and examples in every form."""

FILES = (
    "norm per column → clip z > 2.5 → EMA\n",
    "norm per column -> clip z>2.5 -> EMA",
    """\
rule clip_norm(c = 1) = clip norm > c per all
law bounded: norm(out) <= c per all
law idle: norm(g) <= c per all implies out == g
""",
    """\
rule autoclip(p = 10%, window = 10000) = clip norm > quantile(norm(it) → history(window), p) per all
""",
    """\
rule sinkgd(rounds = 5) = repeat rounds times (rms per row → rms per column)
""",
    """\
rule ema(beta = 0.9, debias = true):
    state m = 0
    m ← beta*m + (1 - beta)*g
    return if debias then m / (1 - beta^t) else m
""",
    """\
rule adam(beta1 = 0.9, beta2 = 0.999, eps = 1e-8):
    \"\"\"Adam (Kingma & Ba 2015).\"\"\"
    state m = 0, v = 0
    m ← beta1*m + (1 - beta1)*g
    v ← beta2*v + (1 - beta2)*g^2
    m̂ = m / (1 - beta1^t)
    v̂ = v / (1 - beta2^t)
    return m̂ / (sqrt(v̂) + eps)
""",
    """\
rule adamw(beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01):
    u = g → adam(beta1, beta2, eps)
    w ← w - lr*(u + weight_decay*w)
""",
    """\
rule scale(beta = 0.9):
    match:
        name ~ "lm_head": ema(beta, debias = false) → norm per column
        ndim < 2:         adam
        else:             norm per column
""",
    """\
rule adagc(ratio = 1.05, beta = 0.98, warmup = 100, max_norm = 1):
    state γ = inf
    x = if t <= warmup then (g → clip norm > max_norm per all) else (g → clip norm > ratio*γ per tensor)
    n = norm(x) per tensor
    γ ← if t <= warmup or γ == inf then min(γ, n) else beta*γ + (1 - beta)*n
    return x
""",
    """\
rule orthogonalize(steps = 5):
    \"\"\"Quintic Newton–Schulz iteration towards the nearest semi-orthogonal matrix (Jordan 2024).\"\"\"
    let x = if rows > cols then g.T else g
    x ← x / (norm(x) + 1e-7) per tensor
    repeat steps times:
        a = x @ x.T
        x ← 3.4445*x + (-4.7750*a + 2.0315*a @ a) @ x
    return if rows > cols then x.T else x
""",
    """\
rule galore(rank = 128, gap = 200, scale = 0.25):
    state P = 0
    every gap from 1:
        P ← left_basis(g, rank)
    u = P.T @ g → adam
    return scale * (P @ u)
""",
    """\
rule dp_sgd(max_norm = 1, noise = 1):
    input samples
    clipped = samples → clip norm > max_norm per all
    return sample_mean(clipped) + gaussian(noise*max_norm / batch)
""",
)

LAWS = """\
law bounded: norm(out) <= c per all
law idle:    norm(g) <= c per all implies out == g
law odd:     rule(-g) == -rule(g)
law scale:   rule(k*g) == rule(g) for k in [1e-3, 1e3]
law turn:    rule(q @ g) == q @ rule(g) for q orthogonal
law perm:    rule(p @ g) == p @ rule(g) for p permutation
law twice:   rule(rule(g)) == rule(g)
law late(warmup = 2): norm(out) <= 3*norm(g) per all
law finite:  isfinite(out) for g any, beta in [0, 1]
example: [[3, 4]] gives [[0.6, 0.8]]
example(beta = 0.9, debias = false): [1]; [1] gives [0.1]; [0.19]
example(h = [[1]]; [[2]], mode = "zscore"): -3; 4 gives 1/2; inf
"""

EVERY_STATEMENT = '''\
use adagc, zclip

fn z2(x, k = 1 in [0, inf]) about k*mean(x) = abs(x - k*mean(x)) / std(x)

rule r(a = 1, b = -a, mode = "x\\\\.y", on = true in [0, 1]):
    """Two lines

        of documentation.
    """
    input h, loss per all, P as matrix, s as samples, samples, q per block(dim(-1))
    state m = 0 per row as float32, v = (rms(w) per row), n' = 0 as bfloat16
    let x = g
    y = x
    repeat 2*a times:
        x ← x → prev
    every 3:
        every 2 from 1:
            m ← m + 1
            reset m
        reset m, v when m > 3
    reset
    skip when norm(g) > 5
    watch seen = norm(g) per all
    w ← w - lr*x
    match:
        name ~ "a|k" and cols > 1: x → clip abs < 3 per element
        ndim == 1:
            u = x
            return u
        else:
            return if on then (x per row) else x
'''
