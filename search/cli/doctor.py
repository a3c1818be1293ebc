"""``search doctor``: does everything that a run needs work on this machine?"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from configs.installation import install_command
from search.budget import count_cores

PACKAGES = ("torch", "torchvision", "timm", "optuna", "ray", "numpy", "pandas", "scikit-learn")
LOW_DISK_GIB = 5.0


def check_all(console: Console, *, data: str | None, storage: str | None = None) -> bool:
    """Print a line for each check and return whether all passed."""
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: platform.python_version(),
        "packages": _packages,
        "devices": _devices,
        "kernels": _kernels,
        "network": _network,
        "disk": _disk,
        "ray": _ray,
    }
    if data is not None:
        checks["data"] = lambda: _data(data)
    if storage is not None:
        checks["storage"] = lambda: _storage(storage)
    passed = True
    for name, check in checks.items():
        try:
            console.print(Text("ok   ", style="green"), f"{name}: {check()}", soft_wrap=True)
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            passed = False
            console.print(Text("wrong", style="red"), f"{name}: {error}", soft_wrap=True)
    return passed


def _packages() -> str:
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(f"{error.name} is not installed; run: {install_command()}") from error


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = count_cores()
    return f"{cores} cores, {len(gpus)} GPUs {', '.join(gpus)}".strip()


def _kernels() -> str:
    """Compare every kernel with torch's operator: a line for each, with times."""
    from supernet.kernels import compare_kernels, describe_selection

    lines, is_wrong = [describe_selection()], False
    for kernel, found in compare_kernels().items():
        lines.append(str(kernel))
        for one in found:
            is_wrong |= bool(one.cause)
            verdict = f"{one.cause}, torch's serves" if one.cause else f"agrees to {one.error:.0e}"
            times = ""
            if one.seconds is not None and one.torch_seconds is not None:
                times = f"{1e3 * one.seconds:8.2f} ms, torch {1e3 * one.torch_seconds:8.2f} ms"
            lines.append(f"  {one.name:18} {verdict:16}{times}".rstrip())
    text = "\n      ".join(lines)
    if is_wrong:
        raise RuntimeError(f"{text}\nRuns work, slower. Report what differs.")
    return text


def _network() -> str:
    import torch

    from searchspace.cost import count
    from searchspace.space import SearchSpace
    from searchspace.spec_file import load_space
    from supernet.network import Supernet, extract, extraction_error

    space: SearchSpace = load_space("micro").replace(num_classes=10)
    architecture = space.extreme("macs", largest=True)
    supernet = Supernet(space)
    images = torch.randn(2, 3, space.img_size, space.img_size)
    error = extraction_error(supernet, architecture, images)
    built = sum(p.numel() for p in extract(supernet, architecture).parameters())
    if error > 1e-5 or built != count(architecture).params:
        raise RuntimeError(
            f"An extracted network differs: logits by {error:.1e}, {built} parameters for "
            f"{count(architecture).params} counted. Run the tests and report what fails."
        )
    return f"largest micro network built and extracted, logits differ by {error:.0e}"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < LOW_DISK_GIB:
        raise RuntimeError(f"only {free:.1f} GiB free here; a run may fill {LOW_DISK_GIB:.0f} GiB")
    return f"{free:.0f} GiB free"


def _ray() -> str:
    from search.cluster import Cluster

    with Cluster(device="cpu") as cluster:
        return f"started and stopped, {cluster.devices} cores"


def _data(source: str) -> str:
    from searchspace.spec_file import load_space
    from supernet.data import prepare_data

    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(source, img_size=load_space("micro").img_size, folder=Path(folder))
        return "\n      ".join(data.lines())


def _storage(text: str) -> str:
    from search.run_folder import Storage, storage_url

    storage = Storage(storage_url(text))
    storage.check(is_new=False)
    return f"{storage.url} can be written, read and emptied"
