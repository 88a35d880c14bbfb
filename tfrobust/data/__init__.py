"""Data sets: in memory, from files, and streamed from disk."""

from tfrobust.data import imagenet
from tfrobust.data.arrays import Dataset, Provenance, joined
from tfrobust.data.images import (
    CorruptImageError,
    TooManyCorruptImagesError,
    image_files,
    read_images,
)
from tfrobust.data.loaders import load
from tfrobust.data.of_model import Data, as_stream
from tfrobust.data.stream import Arrays, Share, Stream
from tfrobust.data.tabular import CorruptDataError, DataNotFoundError
from tfrobust.data.toy import kim_toy, kim_toy_low_variance_direction

__all__ = [
    "Arrays",
    "CorruptDataError",
    "CorruptImageError",
    "Data",
    "DataNotFoundError",
    "Dataset",
    "Provenance",
    "Share",
    "Stream",
    "TooManyCorruptImagesError",
    "as_stream",
    "image_files",
    "imagenet",
    "joined",
    "kim_toy",
    "kim_toy_low_variance_direction",
    "load",
    "read_images",
]
