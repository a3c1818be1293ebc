"""``search show TARGET --task``: what a detector or segmenter costs, the papers' rows below."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from searchspace.architecture import Architecture
from searchspace.cost import Cost
from searchspace.dense import HEADS, TASK_CLASSES, TASK_DATA, TASK_HEADS, TASK_SIZES, check_head
from searchspace.dense_cost import count_dense_parts
from searchspace.mixer_cost import total
from searchspace.published_dense import PublishedRow, published_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseCosts:
    """What a network costs as the backbone of a head.

    Attributes:
        size: (height, width) of the image that MACs are counted on.
        parts: In the order of the forward pass.
        published: What the papers print of the same network and head.
    """

    name: str
    key: str
    task: str
    head: str
    num_classes: int
    size: tuple[int, int]
    parts: dict[str, Cost]
    published: tuple[PublishedRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Describe it with JSON values."""
        whole = total(self.parts.values())
        return {
            **{name: value for name, value in asdict(self).items() if name != "parts"},
            "params": whole.params,
            "macs": whole.macs,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
        }


def dense_costs(
    architecture: Architecture, name: str, *, task: str, head: str | None
) -> DenseCosts:
    """Count a detector or segmenter with the papers' head, classes and image size.

    Raises:
        ValueError: If the task or head is unknown, or the network is no backbone.
    """
    if head is None:
        check_head(task, TASK_HEADS.get(task, ("",))[0])
        head = TASK_HEADS[task][0]
    check_head(task, head)
    return DenseCosts(
        name=name,
        key=architecture.key,
        task=task,
        head=head,
        num_classes=TASK_CLASSES[task],
        size=TASK_SIZES[task],
        parts=count_dense_parts(
            architecture, HEADS[head], num_classes=TASK_CLASSES[task], size=TASK_SIZES[task]
        ),
        published=published_rows(name, head),
    )


def dense_table(found: DenseCosts) -> Table:
    """Show costs, part by part, and the papers' rows below."""
    height, width = found.size
    table = Table(
        "part",
        "parameters",
        "MACs",
        title=f"{found.name} in {found.head}, {found.num_classes} classes of "
        f"{TASK_DATA[found.task]}, {height} x {width} pixels (height x width)",
    )
    for name, part in found.parts.items():
        table.add_row(name, f"{part.params:,}", f"{part.macs / 1e9:,.2f} G")
    whole = total(found.parts.values())
    table.add_section()
    table.add_row("all", f"{whole.params:,}", f"{whole.macs / 1e9:,.2f} G")
    for row in found.published:
        flops = "" if row.flops_g is None else f"{row.flops_g:g} G FLOPs"
        table.add_row(
            f"{row.paper} {row.table} {row.schedule}: {row.result}",
            f"{row.params_m:g} M",
            flops,
            style="dim",
        )
    return table
