"""Images with boxes, masks or a class for every pixel: native sizes, read when they are needed."""

from supernet.data.dense.annotated import AnnotatedImage, DenseData, DenseSplit, ObjectTruth
from supernet.data.dense.find import open_dense_data

__all__ = ["AnnotatedImage", "DenseData", "DenseSplit", "ObjectTruth", "open_dense_data"]
