"""A package on disk becomes a `Bundle`: which files are carried, in which order, and their digest.

files    which files are carried: `read_bundle`, `Bundle`, `SourceFile`
imports  the import graph, read by `ast`: order, reachability
image    imports compared with Kaggle's image
secrets  credentials that must not be pushed
"""
