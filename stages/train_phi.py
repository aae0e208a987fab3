"""Trains a phi on captions alone, for one backbone; its own pipeline in training/dvc.yaml."""

from cvsi import params, phi_training, stage


def train_phi(name: str) -> None:
    """Train the phi of that name in params.yaml: models/NAME."""
    phi_training.train(name, params.load())


if __name__ == "__main__":
    stage.run(train_phi)
