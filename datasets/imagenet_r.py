"""ImageNet-R (Hendrycks et al. 2021): renditions, from paintings to toys, of 200 classes of ImageNet."""

from unskew.data.dataset import DATASET_REGISTRY
from unskew.data.imagenet import NAMES, ImageNetVariant
from unskew.download.sources import DatasetInfo, Source


@DATASET_REGISTRY.register("imagenet_r")
class ImageNetR(ImageNetVariant):
    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    info = DatasetInfo(200, 0, 0, 30000, "2.2 GB", "MIT", "https://github.com/hendrycks/imagenet-r")
    sources = (
        Source(
            "imagenet-r.tar",
            ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
            makes={"imagenet-r": "imagenet-r"},
            checksum="md5:a61312130a589d0ca1a8fca1f2bd3337",
        ),
        NAMES,
    )
