"""A predictor-guided multi-objective sampler for Optuna; `guided_sampler.GuidedSampler` is it."""
