import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "sample" / "cifar10.npz"
SAMPLE_SHA256 = "bdbbd28307cdbfa5e82cf3306a8aa55f32f11eb6343ae8383228763f7cc42c6e"
sys.path.insert(0, str(ROOT))  # for run.py, also where pytest was not started as `python -m pytest`


@pytest.fixture(scope="session")
def hw():
    """The notebook's definitions as a module."""
    from run import load_definitions
    return load_definitions(name="homework_under_test")  # a name of its own: execute() loads `homework` again


@pytest.fixture(scope="session")
def sample():
    """Real images: train images (60, 32, 32, 3), train labels, test images (30, 32, 32, 3), test labels."""
    with np.load(SAMPLE) as arrays:
        return [arrays[name] for name in ("train_images", "train_labels", "test_images", "test_labels")]
