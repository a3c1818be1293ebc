"""How networks are run: what there is, and what is refused before any work is done."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from searchspace import deployment
from searchspace.deployment import PRECISIONS_OF, TARGETS, Deployment


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_target_has_its_precisions_and_no_others(target: str, precision: str) -> None:
    if precision in PRECISIONS_OF[target]:
        assert str(Deployment(target=target, precision=precision)) == (
            f"one image, {target}, {precision}"
        )
    else:
        with pytest.raises(ValueError, match=f"got '{precision}'.*--precision"):
            Deployment(target=target, precision=precision)


@pytest.mark.parametrize(
    "wrong", [{"target": "onnx"}, {"batch": 0}, {"batch": True}, {"batch": 1.5}]
)
def test_what_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"got {next(iter(wrong.values()))!r}"):
        Deployment(**wrong)


@pytest.mark.parametrize(
    ("target", "precision", "missing"),
    [
        ("onnxruntime", "fp32", "onnxruntime"),
        ("openvino", "fp32", "openvino"),
        ("openvino", "int8", "onnxruntime"),
        ("openvino", "fp32", "onnxscript"),
    ],
)
def test_a_missing_package_is_said_at_the_door_with_what_installs_it(
    target: str, precision: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == missing else ModuleSpec(name, None)

    monkeypatch.setattr(deployment, "find_spec", find)
    found = Deployment(target=target, precision=precision)

    with pytest.raises(ValueError, match=rf"needs the package {missing}\. Install: .*\[latency\]"):
        found.check(device="cpu")


def test_files_that_are_there_need_only_their_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(deployment, "find_spec", lambda name: asked.append(name) or name)

    Deployment(target="onnxruntime", precision="int8").check(device="cpu", exports=False)

    assert asked == ["onnxruntime"]


@pytest.mark.parametrize(
    ("target", "device"),
    [("cuda-graph", "cpu"), ("tensorrt", "cpu"), ("onnxruntime", "cuda"), ("openvino", "cuda")],
)
def test_a_target_of_another_device_is_refused(target: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"^{target} (runs on|is timed on) a"):
        Deployment(target=target).check(device=device)
