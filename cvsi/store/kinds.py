"""Every kind of row in the store, with the version number of the code that computes it.

A number is raised by hand when the meaning of that code changes: it is part of the recipe, so rows of an earlier
meaning are no longer used.
"""

CODE_VERSIONS = {
    "files": 3,  # digest, size and readability of a dataset's files
    "changed_files": 1,  # files that changed although nothing that the index compares had changed
    "captions": 1,
    "edits": 2,
    "verdicts": 1,
    "readings": 1,  # raw answers of readers
    "image_vectors": 1,
    "text_vectors": 1,
    "pseudo_vectors": 1,
    "composed_vectors": 1,  # of backbones that embed an image and a text together
    "keyword_spans": 1,  # captions with `$` in place of their keywords, for training phi
    "phi": 1,  # checkpoints of training
    "weights": 1,  # digests of models that are not on this machine, from packs
}
FORMER = ("index",)  # kinds of earlier versions, which the clean-up still lists and removes
KINDS = (*CODE_VERSIONS, *FORMER)
