"""Writers of the sample corpora and benchmarks: one module a kind of text."""
