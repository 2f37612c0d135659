"""What a slot runs: one trial trained through FlagEmbedding's M3 classes and scored at its rungs. No Ray needed."""
