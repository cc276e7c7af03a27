"""The embedded world: images, captions and models whose pre-training label prior is known."""


def true_log_prior(backbone: str, dataset: str):
    """See `unskew.micro.weights.true_log_prior`; here so that importing this package stays free of torch."""
    from unskew.micro.weights import true_log_prior

    return true_log_prior(backbone, dataset)
