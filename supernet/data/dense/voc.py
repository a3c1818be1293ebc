"""Pascal VOC's boxes as COCO's annotation files.

    python -m supernet.data.dense.voc VOC2007 --out voc --split train=trainval --split test

Every split is a list of ``ImageSets/Main``; images are linked where they are. VOC counts pixels
from 1 and its boxes include both borders: a box is (xmin - 1, ymin - 1, xmax, ymax) here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer


def convert_voc(root: Path, out: Path, splits: dict[str, str]) -> None:
    """Write ``annotations/instances_<split>.json`` and ``images/<split>`` of a VOC folder.

    Args:
        root: With ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        out: The new folder.
        splits: Our name of each split, and the list that it is.

    Raises:
        ValueError: If a list or an annotation is missing or unreadable.
    """
    parsed = {split: _parse_list(root, name) for split, name in splits.items()}
    classes = sorted(
        {box["name"] for images in parsed.values() for image in images for box in image["boxes"]}
    )
    numbers = {name: number for number, name in enumerate(classes, 1)}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split, images in parsed.items():
        folder = out / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        annotations: list[dict[str, Any]] = []
        entries = []
        for number, image in enumerate(images, 1):
            source = root / "JPEGImages" / image["file_name"]
            if not source.is_file():
                raise ValueError(f"The image {source} is missing. Add it.")
            link = folder / image["file_name"]
            if not link.exists():
                link.symlink_to(source.resolve())
            entries.append({"id": number} | {k: v for k, v in image.items() if k != "boxes"})
            for box in image["boxes"]:
                x1, y1, x2, y2 = box["corners"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": numbers[box["name"]],
                        "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
                        "area": (x2 - x1 + 1) * (y2 - y1 + 1),
                        # Difficult objects are ignored by VOC's measure, as crowds by COCO's.
                        "iscrowd": box["difficult"],
                    }
                )
        text = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
        (out / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def _parse_list(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise ValueError(f"There is no list {path}. Name one of ImageSets/Main.")
    names = path.read_text(encoding="utf-8").split()
    return [_parse(root / "Annotations" / f"{name}.xml") for name in names]


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = ElementTree.parse(path).getroot()
        return {
            "file_name": _file_name(tree.findtext("filename") or f"{path.stem}.jpg"),
            "width": int(_text(tree, "size/width")),
            "height": int(_text(tree, "size/height")),
            "boxes": [
                {
                    "name": _text(one, "name"),
                    "difficult": int(one.findtext("difficult") or 0),
                    "corners": [
                        float(_text(one, f"bndbox/{side}"))
                        for side in ("xmin", "ymin", "xmax", "ymax")
                    ],
                }
                for one in tree.iter("object")
            ],
        }
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is no annotation of Pascal VOC ({error}). Mend it.") from error


def _file_name(name: str) -> str:
    """Return a name of an image, which becomes one in another folder."""
    if name != Path(name).name or name in (".", "..") or not name.isprintable():
        raise ValueError(f"its filename {name!r} is more than a name")
    return name


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"it has no {path}")
    return found


def main(
    root: Annotated[Path, typer.Argument(help="Folder of a VOC year.")],
    out: Annotated[Path, typer.Option(help="Folder that is written.")],
    split: Annotated[list[str], typer.Option(help="train=trainval, or test.")],
) -> None:
    """Convert Pascal VOC's boxes to COCO's format."""
    pairs = (name.partition("=") for name in split)
    convert_voc(root, out, {ours: theirs or ours for ours, _, theirs in pairs})


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"Error: {error}")
