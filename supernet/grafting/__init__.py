"""Replacing blocks of a trained network: parts that learn from it, and networks made of them."""

from supernet.grafting.assembly import assemble
from supernet.grafting.library import LibraryTrainer, load_library
from supernet.grafting.parts import Part, new_part, part_keys
from supernet.grafting.records import record_blocks
from supernet.grafting.widths import hidden_order

__all__ = [
    "LibraryTrainer",
    "Part",
    "assemble",
    "hidden_order",
    "load_library",
    "new_part",
    "part_keys",
    "record_blocks",
]
