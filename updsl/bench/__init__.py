"""How fast a rule is: one protocol for `updsl bench` and for benchmarks/."""
