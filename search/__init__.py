"""The program: command line, budget, engine, Pareto front, reports, retraining."""
