"""The bundle: checkpoint, best configuration, runnable command, scores, provenance, for programs and people.

`bundle` writes it, `finished_run` reads the run it is made of, `model_folder` lays out the model for the libraries
that open it, `multi_vector` its ColBERT head for one of them, `graphs` its ONNX graphs, `train_script` writes train.sh
and best_config.yaml, `negatives` counts the negatives of each query, `model_card` writes README.md, `templates` fills
in the texts that lie beside it. `command` is ``python -m tuner.export``.

Uses: verdict, study, data, request, run_dir.
"""
