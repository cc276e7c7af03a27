"""ImageNet-Sketch (Wang et al. 2019): drawings of each class of ImageNet."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import NAMES, ImageNetVariant
from unskew.download.sources import DatasetInfo, Source

_PAGE = "https://github.com/HaohanWang/ImageNet-Sketch"


@DATASET_REGISTRY.register("imagenet_sketch")
class ImageNetSketch(ImageNetVariant):
    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    info = DatasetInfo(1000, 0, 0, 50889, "7.8 GB", "MIT", _PAGE)
    sources = (
        Source(
            "ImageNet-Sketch.zip", ("drive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",), makes={"sketch": "images"}, page=_PAGE
        ),
        NAMES,
    )
