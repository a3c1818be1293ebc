"""Networks of the mixer family in torch: mixers, supernet, extraction, data and training."""
