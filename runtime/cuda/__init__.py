"""Serving on an NVIDIA GPU: the driver by ctypes, and CUDA graphs made of the artifact's templates."""
