"""Import of labelled images from other libraries' formats into class folders, which the dataset `folder` reads."""

from unskew.data.importing.write import import_images

__all__ = ["import_images"]
