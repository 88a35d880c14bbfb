"""ImageNet, read from disk batch by batch."""

from tfrobust.data.imagenet.stream import Examples, ImageStream, load

__all__ = ["Examples", "ImageStream", "load"]
