from .op import activations_for, embedding, linear, quantize_activations, round_activations

__all__ = ["activations_for", "embedding", "linear", "quantize_activations", "round_activations"]
