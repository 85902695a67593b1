"""Hydra takes launchers from the namespace package hydra_plugins only."""
