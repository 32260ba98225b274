"""What timm and torchvision do not already have."""

from models.backbones.pyramid import Pyramid

__all__ = ["Pyramid"]
