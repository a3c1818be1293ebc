"""What a person asks of a front: query, compare, select."""
