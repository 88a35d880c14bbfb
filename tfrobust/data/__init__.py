"""Data sets: in memory, from files, and streamed from disk."""

from tfrobust.data import imagenet
from tfrobust.data.arrays import Dataset, Provenance, load
from tfrobust.data.images import CorruptImageError, CorruptImagesError, image_files, read_images
from tfrobust.data.stream import Arrays, Share, Stream
from tfrobust.data.tabular import CorruptDataError, DataNotFoundError

__all__ = [
    "Arrays",
    "CorruptDataError",
    "CorruptImageError",
    "CorruptImagesError",
    "DataNotFoundError",
    "Dataset",
    "Provenance",
    "Share",
    "Stream",
    "image_files",
    "imagenet",
    "load",
    "read_images",
]
