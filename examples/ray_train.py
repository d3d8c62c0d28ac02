"""Tunes an adapter on the machines of a Ray cluster, or with some processes of this one. Needs ray[train].

python examples/ray_train.py customer_service.json --workers 2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def tune(settings: dict[str, Any]) -> None:
    """What every worker does: Ray has told torch by now who is who."""
    from deepseek_tune import LoRATuner

    LoRATuner(**settings).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_data", type=Path, help="where all machines see it; the adapter is written beside it")
    parser.add_argument("--base-model", default="deepseek-v2.1")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    options = parser.parse_args()
    settings = {
        "base_model": options.base_model,
        "train_data": str(options.train_data.resolve()),  # workers have working folders of their own
        "epochs": options.epochs,
    }
    scaling = ScalingConfig(num_workers=options.workers, use_gpu=options.gpu)
    TorchTrainer(tune, train_loop_config=settings, scaling_config=scaling).fit()


if __name__ == "__main__":
    main()
