"""Datasets, splits, few-shot samples, images and loaders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"dataset": ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]}
)
