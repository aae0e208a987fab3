"""The computation of the stages captions, edits, gallery_vectors and query_vectors."""
