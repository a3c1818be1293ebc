"""What a run ends with: the page, the pictures, the words."""

from search.report.closing import export_front, print_closing, write_report

__all__ = [
    "export_front",
    "print_closing",
    "write_report",
]
