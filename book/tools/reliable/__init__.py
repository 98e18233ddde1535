"""What a release is beside correct: the same everywhere, whole, quick; see ``command``."""
