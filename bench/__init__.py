"""Benchmarks: what `engine bench` runs. Import the modules: the client's half needs no torch."""
