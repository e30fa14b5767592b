"""Training tasks of the benchmark that are no examples: other kinds of model, on real data from packages."""
