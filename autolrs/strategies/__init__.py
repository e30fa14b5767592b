"""Strategies: decide what happens next in a run."""
