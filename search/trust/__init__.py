"""How well cheap estimates rank networks, and what a run judges by."""
