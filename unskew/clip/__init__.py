"""CLIP backbones, prompts, text and image features, adapters and heads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbones": ["Backbone", "load_backbone"],
        "features": ["encode_images"],
        "text": ["cosine_logits", "encode_prompts", "zeroshot_classifier"],
    },
)
