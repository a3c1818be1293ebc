"""Image data: any source as three disjoint splits, decoded once for all processes or streamed."""

from supernet.data.arrays import OnProgress, Split, square
from supernet.data.catalog import open_source, resolve_source
from supernet.data.decoding import decode_image
from supernet.data.files import read_regular
from supernet.data.folders import open_unlabelled
from supernet.data.image_data import (
    CROP_FRACTION,
    DATA_FILE,
    ImageData,
    mend_data,
    open_data,
    prepare_data,
)
from supernet.data.streaming import JoinedStreams, StreamedImages
from supernet.data.unlabelled import (
    Unlabelled,
    check_unlabelled_files,
    prepare_unlabelled,
    with_unlabelled,
)

__all__ = [
    "CROP_FRACTION",
    "DATA_FILE",
    "ImageData",
    "JoinedStreams",
    "OnProgress",
    "Split",
    "StreamedImages",
    "Unlabelled",
    "check_unlabelled_files",
    "decode_image",
    "mend_data",
    "open_data",
    "open_source",
    "open_unlabelled",
    "prepare_data",
    "prepare_unlabelled",
    "read_regular",
    "resolve_source",
    "square",
    "with_unlabelled",
]
