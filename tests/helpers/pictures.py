"""Synthetic images and their files, for the tests of what reads images."""

import io

import numpy as np
from PIL import Image


def smooth(rng, height, width):
    """(height, width, 3) uint8 without sharp edges, which JPEG keeps well."""
    coarse = rng.uniform(0, 255, (4, 4, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def encoded(image, form="JPEG", **options):
    """What a file of `image`, an array or a Pillow image, holds."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}) | options)
    return buffer.getvalue()


def jpeg(rng, height=40, width=50):
    return encoded(smooth(rng, height, width))
