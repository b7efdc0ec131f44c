"""`updsl train`: does a rule help a small model through trouble? Imports torch; only the command line imports this, and only for that command."""
