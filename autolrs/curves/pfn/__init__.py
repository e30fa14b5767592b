"""A prior-data fitted network for curves: its prior, network, training and the curve model `PFN`."""
