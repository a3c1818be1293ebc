"""Images with boxes, masks or a class for every pixel: native sizes, read when they are needed."""

from supernet.data.dense.annotated import AnnotatedImage, DenseData, DenseSplit, ObjectTruth
from supernet.data.dense.find import open_dense_data
from supernet.data.dense.searched import (
    TASK_FILE,
    SearchedData,
    check_searched,
    open_searched,
    prepare_searched,
    searched_classes,
)

__all__ = [
    "TASK_FILE",
    "AnnotatedImage",
    "DenseData",
    "DenseSplit",
    "ObjectTruth",
    "SearchedData",
    "check_searched",
    "open_dense_data",
    "open_searched",
    "prepare_searched",
    "searched_classes",
]
