"""The room `run_dir`."""
