"""A predictor-guided multi-objective sampler for Optuna; `guided_sampler.GuidedSampler` is it."""

from search.sampling.asking import SAMPLERS, Asking, default_sampler
from search.sampling.candidates import breed
from search.sampling.design_space import Choose, DesignSpace, Draw, draw_random
from search.sampling.guided_sampler import GuidedSampler
from search.sampling.proposer import Mirror, Proposer, design_space

__all__ = [
    "SAMPLERS",
    "Asking",
    "Choose",
    "DesignSpace",
    "Draw",
    "GuidedSampler",
    "Mirror",
    "Proposer",
    "breed",
    "default_sampler",
    "design_space",
    "draw_random",
]
