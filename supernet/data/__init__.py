"""Image data: any source as three disjoint splits, decoded once for all processes or streamed."""

from supernet.data.arrays import OnProgress, Split, square
from supernet.data.image_data import ImageData, mend_data, open_data, prepare_data
from supernet.data.streaming import StreamedImages

__all__ = ["ImageData", "OnProgress", "Split", "StreamedImages"]
__all__ += ["mend_data", "open_data", "prepare_data", "square"]
