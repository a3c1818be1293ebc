"""A published checkpoint becomes a folder whose network timm builds and loads."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from search.retraining import import_checkpoint as importing
from search.retraining.import_checkpoint import import_checkpoint
from search.retraining.out_folder import claim_folder
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import WindowAttention

TINY = Architecture(
    img_size=28,
    patch_size=4,
    stages=(Stage(dim=12, mixers=(WindowAttention(window_size=7, num_heads=2),)),),
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    theirs = SwinTransformer(
        img_size=28, num_classes=3, embed_dim=12, depths=(1,), num_heads=(2,), window_size=7
    )
    torch.save({"model": theirs.state_dict()}, tmp_path / "swin.pth")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    torch.manual_seed(1)
    images = torch.randn(2, 3, 28, 28)
    torch.save(theirs.eval()(images).detach(), tmp_path / "logits.pt")
    return tmp_path / "swin.pth"


def test_an_imported_folder_is_a_timm_model(checkpoint: Path) -> None:
    tiny = checkpoint.parent / "tiny.json"
    folder = import_checkpoint(checkpoint, str(tiny), out=checkpoint.parent / "imported")
    model = timm.create_model(
        "mixer_search",
        architecture=str(folder / "architecture.json"),
        checkpoint_path=str(folder / "model.safetensors"),
    ).eval()
    torch.manual_seed(1)
    logits = model(torch.randn(2, 3, 28, 28))
    torch.testing.assert_close(logits, torch.load(checkpoint.parent / "logits.pt"))


def test_a_folder_is_not_overwritten(checkpoint: Path) -> None:
    tiny, out = str(checkpoint.parent / "tiny.json"), checkpoint.parent / "imported"
    import_checkpoint(checkpoint, tiny, out=out)
    with pytest.raises(ValueError, match="exists"):
        import_checkpoint(checkpoint, tiny, out=out)
    training = checkpoint.parent / "training"
    claim_folder(training, TINY, "name: mine\n", what="retraining")
    before = {path.name: path.read_bytes() for path in training.iterdir()}
    with pytest.raises(ValueError, match=r"recipe\.yaml exists"):
        import_checkpoint(checkpoint, tiny, out=training)
    assert {path.name: path.read_bytes() for path in training.iterdir()} == before


def test_an_import_that_broke_off_is_done_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, out = str(checkpoint.parent / "tiny.json"), checkpoint.parent / "broken"

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(importing, "save_file", half)
        with pytest.raises(OSError, match="No space left"):
            import_checkpoint(checkpoint, tiny, out=out)
    import_checkpoint(checkpoint, tiny, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["architecture.json", "model.safetensors"]
