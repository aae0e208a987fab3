"""Embeds every gallery image and its captions with a backbone."""

from cvsi import params, stage, vectors


def gallery_vectors(dataset: str, backbone: str) -> None:
    """Embed the dataset's gallery: cache/DATASET/BACKBONE/gallery_vectors."""
    vectors.gallery(dataset, backbone, params.load())


if __name__ == "__main__":
    stage.run(gallery_vectors)
