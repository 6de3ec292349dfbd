"""``/v2``: the Open Inference Protocol and what Triton adds to it. docs/open-inference.md says what is served."""
