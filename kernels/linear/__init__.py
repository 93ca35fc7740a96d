from .op import activations_for, embedding, linear, linear_mixed, quantize_activations, quantize_rows, round_activations

__all__ = ["activations_for", "embedding", "linear", "linear_mixed", "quantize_activations", "quantize_rows", "round_activations"]
