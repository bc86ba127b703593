import pickle
import subprocess
import sys

from pickles.jar import Jar, Taste, halve, run


def test_an_object_survives_pickling() -> None:
    for value in (Jar(3), Taste.SWEET, halve, Jar.Label):
        assert pickle.loads(pickle.dumps(value)) == value


def test_the_pickle_names_the_real_module() -> None:
    assert b"pickles.jar" in pickle.dumps(Jar(3), protocol=4)
    assert Jar.__module__ == "pickles.jar"
    assert Jar.Label.__qualname__ == "Jar.Label"


def test_another_process_can_unpickle_it(tmp_path) -> None:
    path = tmp_path / "jar.pickle"
    path.write_bytes(pickle.dumps(Jar(5, Taste.SWEET)))
    program = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == repr(Jar(5, Taste.SWEET)), done.stderr


def test_spawned_workers_can_unpickle_functions() -> None:
    assert run() == [Jar(1, Taste.SWEET), Jar(4, Taste.SWEET)]
