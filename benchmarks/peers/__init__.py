"""Engine and its peers under the same load: what `python benchmarks/peers` runs."""
