"""updsl: a language for update rules."""

__version__ = "0.1.0"
