"""What a listing leaves out, and why; nothing is left out without a word."""

from __future__ import annotations

from dataclasses import dataclass, field

from supernet.data.decoding import IMAGE_SUFFIXES, shown

HIDDEN = "hidden"
CLUTTER = "thumbnails and other folders of file servers"
NO_IMAGE = "no images"
NO_FILE = "pipes, sockets, devices"
AGAIN = "the same file again"
REPLACED = "replaced by a later file of the same name"
OUTSIDE = "outside of the class folders"
COPIES = "backups and unfinished downloads"
UNREAD = "formats that are not read"
FURTHER = "further files of a sample that has its image"

# Written by file servers, desktops and archivers, in lower case.
_CLUTTER = {
    *("__macosx", "@eadir", "@__thumb", "@tmp", "@sharebin", "@recycle", "@recently-snapshot"),
    *("#recycle", "#snapshot", "~snapshot", "$recycle.bin", "system volume information"),
    *("lost+found", "network trash folder", "temporary items", "thumbs.db", "desktop.ini"),
    "__pycache__",
}
_COPY_SUFFIXES = ("~", ".bak", ".orig", ".tmp", ".temp", ".part", ".partial", ".crdownload")
_UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jxr", ".psd", ".svg", ".svgz", ".eps", ".ps"),
    *(".pdf", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"),
    *(".fits", ".dcm", ".nii", ".pcx", ".xcf", ".dds"),
)


@dataclass(slots=True)
class Skipped:
    """Files that were left out.

    Attributes:
        found: Reason -> how many, and the name of the first.
    """

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a file."""
        count, first = self.found.get(reason, (0, shown(name)))
        self.found[reason] = (count + 1, first)


def clutter_reason(name: str) -> str | None:
    """Tell why a file or folder of this name, without its path, is none of the user's images."""
    if name.startswith("."):
        return HIDDEN
    return CLUTTER if name.lower() in _CLUTTER else None


def has_image_suffix(name: str) -> bool:
    """Tell whether a file is an image by its name; where not, its content decides."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def copy_reason(name: str) -> str | None:
    """Tell why a file of this name is no image of its own, whatever it holds."""
    return COPIES if name.lower().endswith(_COPY_SUFFIXES) else None


def other_reason(name: str) -> str:
    """Tell why a file is not taken that has no accepted content."""
    return UNREAD if name.lower().endswith(_UNREAD_SUFFIXES) else NO_IMAGE
