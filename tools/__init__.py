"""Commands for maintainers: gather photographs, make test checkpoints, draw figures."""
