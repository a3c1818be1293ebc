"""Networks as they run where they are used: timed by runtimes that need no torch.

What makes files and what runs torch are doors of their own: this room, a kit and a command are all
that a device needs.
"""

from search.deployed.kit import Kit, Whole, measure_kit
from search.deployed.sessions import open_network
from search.deployed.timing import Job, time_in_turn

__all__ = ["Job", "Kit", "Whole", "measure_kit", "open_network", "time_in_turn"]
