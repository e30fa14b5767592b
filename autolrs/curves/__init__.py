"""Curve models: extrapolate a probe's losses, with honest uncertainty."""
