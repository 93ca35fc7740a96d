from .op import embedding, linear, quantize_activations

__all__ = ["embedding", "linear", "quantize_activations"]
