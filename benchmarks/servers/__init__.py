"""What users would pick in place of posemux, as small servers of the same models."""
