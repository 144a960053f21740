"""The HTTP handlers of the embedded pod, one file per subject."""
