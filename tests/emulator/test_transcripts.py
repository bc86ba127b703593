"""The local Kaggle's responses compared with the real ones, if a transcript of them exists.

`kernelkit doctor --probe` writes a transcript.json. Put it into the folder `transcripts` next to
this file: the tests compare it with a probe of the local Kaggle, which must answer the same calls
in the same shapes.
"""

import json
from pathlib import Path

import pytest

from kernelkit.doctor.probe import differences, probe
from kernelkit.kaggle.kernels import connect

TRANSCRIPTS = sorted(Path(__file__).with_name("transcripts").glob("*.json"))
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no transcript of the real Kaggle yet"))


@pytest.fixture(scope="module")
def ours(emulator_server, tmp_path_factory):
    """The transcript of a probe of the local Kaggle."""
    folder = tmp_path_factory.mktemp("probe")
    account = {"KAGGLE_USERNAME": "prober", "KAGGLE_KEY": "key"}
    probe(connect(emulator_server.endpoint, account), folder, ["some-competition"])
    return json.loads((folder / "transcript.json").read_text())


def test_the_local_kaggle_equals_itself(ours):
    assert differences(ours, ours) == []


def test_every_changed_field_is_a_difference(ours):
    """`differences` notices each field of each response."""
    for number, exchange in enumerate(ours["exchanges"]):
        for name in exchange["body"] or {}:
            changed = json.loads(json.dumps(ours))
            for other in changed["exchanges"]:
                if other["call"] == exchange["call"] and name in (other["body"] or {}):
                    other["body"][name] = "something else"
            assert differences(changed, ours), (number, name)


@pytest.mark.parametrize("path", TRANSCRIPTS or [NONE])
def test_the_local_kaggle_answers_like_the_real_one(path, ours):
    found = differences(json.loads(path.read_text()), ours)
    assert not found, "\n".join(found)
