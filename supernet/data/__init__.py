"""Image data: any source as three disjoint splits, decoded once for all processes or streamed."""

from supernet.data.arrays import OnProgress, Split, square
from supernet.data.decoding import decode_image
from supernet.data.files import read_regular
from supernet.data.image_data import (
    CROP_FRACTION,
    DATA_FILE,
    ImageData,
    mend_data,
    open_data,
    prepare_data,
)
from supernet.data.streaming import StreamedImages

__all__ = [
    "CROP_FRACTION",
    "DATA_FILE",
    "ImageData",
    "OnProgress",
    "Split",
    "StreamedImages",
    "decode_image",
    "mend_data",
    "open_data",
    "prepare_data",
    "read_regular",
    "square",
]
