from __future__ import annotations

import csv
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src_salt.checkpoint import to_bytes
from src_salt.config import Settings
from src_salt.data import Competition, LabelledImages, load_competition
from src_salt.main import _write_submission
from src_salt.metrics import Postprocessing
from src_salt.model import UNet
from src_salt.outputs import Outputs, write_bytes, write_zip
from src_salt.predict import load_model, predict, write_prediction
from src_salt.submission import decode
from src_salt.transforms import normalize, resize_to_input


class Brightness(torch.nn.Module):
    """A network whose logit is the pixel's normalized value, so that the result is known."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] + self.nothing


class Left(Brightness):
    """Predicts salt only in the left half of its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(images.shape[-1])
        weights[: images.shape[-1] // 2] = 1
        return super().forward(images) * weights


def test_mirrored_predictions_are_mirrored_back(settings: Callable[..., Settings]) -> None:
    """For a bright left half the two predictions differ, and their mean is known."""
    image = np.zeros((1, 101, 101), np.uint8)
    image[..., :50] = 255
    chosen = settings(recipe="best", image_size=128)
    assert chosen.resolved_recipe.flip_tta
    found = next(predict([Left()], image, chosen, ""))[0]
    bright = 1 / (1 + np.exp(-(1 - 0.485) / 0.229))
    dark = 1 / (1 + np.exp(0.485 / 0.229))
    assert np.allclose(found[:, :45], (bright + 0.5) / 2, atol=1e-4)
    assert np.allclose(found[:, 55:], (0.5 + dark) / 2, atol=1e-4)


def test_probabilities_have_full_size_and_the_order_of_the_images(
    settings: Callable[..., Settings],
) -> None:
    levels = np.linspace(0, 255, 10).astype(np.uint8)
    flat = np.repeat(levels, 101 * 101).reshape(10, 101, 101)
    batches = []
    for batch in predict([Brightness()], flat, settings(num_workers=2), "test"):
        assert not multiprocessing.active_children()  # a worker that dies would cost the submission
        batches.append(batch)
    assert [batch.shape for batch in batches] == [(4, 101, 101), (4, 101, 101), (2, 101, 101)]
    expected = 1 / (1 + np.exp(-(levels / 255 - 0.485) / 0.229))
    found = np.concatenate(batches)
    assert found.dtype == np.float32
    assert np.allclose(found, expected[:, None, None], atol=1e-4)


def test_positions_are_preserved(
    easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    found = np.concatenate(list(predict([Brightness()], easy_images.images, settings(), "test")))
    agreement = ((found > 0.5) == (easy_images.masks > 0)).mean()
    assert agreement > 0.95  # edges are inexact at 32 pixels


def test_callers_gradient_mode_is_unchanged_between_batches(
    easy_images: LabelledImages, settings: Callable[..., Settings]
) -> None:
    for _ in predict([Brightness()], easy_images.images, settings(), "test"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


# --- models.zip alone ---------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "src_salt.md"

PREDICT_TEST_IMAGES = """
import sys
sys.modules["src_salt"] = None  # an import of it now fails
{program}
images = zipfile.ZipFile(sys.argv[1])
pixels = [cv2.imdecode(numpy.frombuffer(images.read(f"images/{{name}}.png"), numpy.uint8), 0)
          for name in sys.argv[2:]]
torch.set_num_threads(1)
numpy.save("masks.npy", predict(numpy.stack(pixels)))
"""


def write_models(
    competition: Competition, settings: Settings, postprocessing: Postprocessing
) -> None:
    """Write submission and models.zip as a run does, with networks that predict many edges."""
    outputs = Outputs(settings.output_dir)
    recipe = settings.resolved_recipe
    images = resize_to_input(competition.test.images, settings.image_size, recipe.fit)
    for seed, experiment in enumerate(settings.planned_experiments):
        torch.manual_seed(seed)
        model = UNet(experiment.backbone, recipe.normalized_decoder)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics become those of the images
        with torch.no_grad():
            logits = model(normalize(torch.from_numpy(images).float()))
            model.head.weight /= logits.std()
            model.head.bias.zero_()
            logits = model.eval()(normalize(torch.from_numpy(images).float()))
            model.head.bias -= logits.median()
        write_bytes(outputs.weights(experiment.name), to_bytes(model.state_dict()))
    models = [load_model(one, settings, outputs) for one in settings.planned_experiments]
    _write_submission(models, postprocessing, competition, settings, outputs)
    write_prediction(settings.planned_experiments, postprocessing, settings, outputs)
    files = [*(outputs.root / "models").iterdir()]
    write_zip(outputs.models_zip, outputs.root, files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "changes", "postprocessing"),
    [
        ("resnet34_BCEDice", {"recipe": "baseline", "image_size": 48}, Postprocessing()),
        ("resnet34_Lovasz", {"recipe": "fast", "image_size": 64}, Postprocessing(0.6)),
        ("resnet34_Lovasz", {"recipe": "best", "image_size": 64}, Postprocessing(0.45, 40)),
        ("resnet34_Lovasz", {"recipe": "best", "folds": 2}, Postprocessing(0.45, 10)),
        ("resnet50_BCEDice", {"recipe": "best", "image_size": 128}, Postprocessing(0.5, 160)),
    ],
)
def test_program_in_the_docs_predicts_the_submission_from_models_zip(
    experiment: str,
    changes: dict[str, Any],
    postprocessing: Postprocessing,
    competition_dir: Path,
    settings: Callable[..., Settings],
    tmp_path: Path,
) -> None:
    """It runs where src_salt cannot be imported, with nothing but the zip."""
    chosen = settings(experiments=experiment, **changes)
    write_models(load_competition(competition_dir), chosen, postprocessing)
    (program,) = re.findall("```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(chosen.output_dir / "models.zip", alone)
    with (chosen.output_dir / "submission.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-c", PREDICT_TEST_IMAGES.format(program=program)),
            *(str(competition_dir / "test.zip"), *(name for name, _ in rows)),
        ],
        cwd=alone,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(alone / "masks.npy")
    expected = np.stack([decode(rle, (101, 101)) for _, rle in rows])
    assert 0.05 < expected.mean() < 0.95
    assert (found == expected).all(), (found != expected).sum()
