"""Image data: any source decoded once into three disjoint splits that many processes share."""

from supernet.data.arrays import OnProgress, Split
from supernet.data.image_data import ImageData, open_data, prepare_data

__all__ = ["ImageData", "OnProgress", "Split", "open_data", "prepare_data"]
