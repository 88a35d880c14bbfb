"""The image manifold as a VAE-GAN learns it, and the distance of images from it (Kim 2019)."""

from tfrobust.manifold.distance import ManifoldDistance, distance
from tfrobust.manifold.training import train
from tfrobust.manifold.vae_gan import VaeGan

__all__ = ["ManifoldDistance", "VaeGan", "distance", "train"]
