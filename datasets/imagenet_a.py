"""ImageNet-A (Hendrycks et al. 2021): natural images of 200 classes that ResNets misclassify."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import NAMES, ImageNetVariant
from unskew.download.sources import DatasetInfo, Source


@DATASET_REGISTRY.register("imagenet_a")
class ImageNetA(ImageNetVariant):
    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    info = DatasetInfo(200, 0, 0, 7500, "0.7 GB", "MIT", "https://github.com/hendrycks/natural-adv-examples")
    sources = (
        Source(
            "imagenet-a.tar",
            ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",),
            makes={"imagenet-a": "imagenet-a"},
            checksum="md5:c3e55429088dc681f30d81f4726b6595",
        ),
        NAMES,
    )
