"""Trains a phi on captions alone, for one backbone; its own pipeline in training/dvc.yaml."""

from cvsi.core import params, stage_runner
from cvsi.training import train


def train_phi(name: str) -> None:
    """Train the phi of that name in params.yaml: models/NAME."""
    train.train(name, params.load())


if __name__ == "__main__":
    stage_runner.run(train_phi)
