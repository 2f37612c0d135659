"""The bundle: checkpoint, best configuration, runnable command, scores, provenance, for programs and people.

`bundle` writes it, `finished_run` reads the run it is made of, `model_folder` lays out the model for the libraries
that open it, `train_script` writes train.sh and best_config.yaml, `negatives` counts what a query was trained
against, `model_card` writes README.md, `templates` fills in the texts that lie beside it. ``python -m tuner.export`` is
its door.

Uses: verdict, study, data, request, run_dir.
"""
