"""An object store with S3's interface for the tests, on this machine: moto's server, through s3fs.

Neither is installed with the development tools: they want other versions of libraries that those
share. ``pip install --target FOLDER s3fs 'moto[server]'``, and FOLDER first in PYTHONPATH.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def object_store() -> Iterator[str]:
    """Start a store and make a bucket; yield its URL. Processes that are started meanwhile find it.

    Skips the test where s3fs or moto is missing.
    """
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs and moto[server] for an object store")
    server_module = pytest.importorskip(
        "moto.server", reason="needs s3fs and moto[server] for an object store"
    )
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            s3fs.S3FileSystem().mkdir(bucket)
            yield f"s3://{bucket}/run"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()
