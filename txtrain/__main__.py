"""`python -m txtrain` is the same as `txtrain`."""

from txtrain.cli import start

start()
