"""Searches for hyperparameters: trials are trainings in processes of their own, told what to do and watched by records.

Optuna chooses parameters and decides what is behind; a study lies in `study.db` of the sweep's folder. Hydra comes in
through `hydra_plugins`. Nothing here knows how a run trains, and no run knows that it is a trial.
"""
