"""Label bias as functions and classes on arrays: NumPy or torch in, the same kind out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "combination": ["SUM", "Combination", "adjust", "combine", "fit_combination"],
        "gla": ["GLA"],
        "io": ["read_prior"],
        "metrics": ["classification_metrics", "prior_groups"],
        "mixture": ["combine_members", "fit_member_weights"],
        "prior": ["PriorEstimate", "estimate_log_prior"],
        "sources": ["FeatureLogits", "MappedLogits", "ShardedLogits", "open_source"],
        "temperature": ["fit_temperature"],
        "transport": ["transport_offset"],
    },
)
