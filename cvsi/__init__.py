"""CVSI, composed image retrieval as a staged pipeline with cached artifacts.

A dataset's folder becomes two tables, images and queries (`datasets`, `indexing`). A captioner describes every
image (`captioner`), a language model rewrites the reference's captions by the instruction (`editor`), a CLIP
backbone turns images and texts into vectors (`encoder`), phi turns a reference image into a pseudo token (`phi`).
Weights fuse these vectors into one a query and one a gallery image (`fusion`); ranking is one matrix product
(`ranking`), and `metrics`, `submissions` and `report` say how good it was. What is expensive is kept row by row in
the store (`store`) and filled block by block (`steps`); `tables` holds every path, `schema` every column.
A module imports only modules that come before it in this flow.
"""

import os

__version__ = "0.1.0"

# Read when torch is loaded, so it has to stand here: threads that wait must sleep. Spinning ones cost small models a
# factor of forty on a machine that is busy with something else (9.3 s against 0.25 s for a batch of captions).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
