"""Ray, and only here: the connection, warm judges, trials in Ray Tune."""
