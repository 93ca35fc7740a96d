from .op import embedding, linear

__all__ = ["embedding", "linear"]
