"""`python -m updsl` is the `updsl` command."""

from updsl.cli import main

main()
