"""CLIP: backbones, text and image features, adapters and heads."""
