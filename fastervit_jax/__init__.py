"""FasterViT: Fast Vision Transformers with Hierarchical Attention, in JAX and Flax NNX."""
