"""The local Kaggle's answers against those of the real one, where a transcript of it is at hand.

`kernelkit doctor --probe` leaves a transcript.json; put into the folder `transcripts` beside this
file, it is held against a probe of the local Kaggle: the same calls must answer in the same shapes.
"""

import json
from pathlib import Path

import pytest

from kernelkit.doctor.probe import differences, probe
from kernelkit.kaggle.connect import connect

TRANSCRIPTS = sorted(Path(__file__).with_name("transcripts").glob("*.json"))
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no transcript of the real Kaggle yet"))


@pytest.fixture(scope="module")
def ours(shared, tmp_path_factory):
    """What a probe of the local Kaggle keeps."""
    folder = tmp_path_factory.mktemp("probe")
    account = {"KAGGLE_USERNAME": "prober", "KAGGLE_KEY": "key"}
    probe(connect(shared.endpoint, account), folder, ["some-competition"])
    return json.loads((folder / "transcript.json").read_text())


def test_the_local_kaggle_answers_as_itself(ours):
    assert differences(ours, ours) == []


def test_every_answer_counts(ours):
    """Each call taken out of the one, or each field changed, is seen as a difference."""
    for number, exchange in enumerate(ours["exchanges"]):
        for name in exchange["body"] or {}:
            changed = json.loads(json.dumps(ours))
            for other in changed["exchanges"]:
                if other["call"] == exchange["call"] and name in (other["body"] or {}):
                    other["body"][name] = "something else"
            assert differences(changed, ours), (number, name)


@pytest.mark.parametrize("path", TRANSCRIPTS or [NONE])
def test_the_local_kaggle_answers_as_the_real_one(path, ours):
    found = differences(json.loads(path.read_text()), ours)
    assert not found, "\n".join(found)
