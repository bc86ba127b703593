"""This file contains no secret: each test makes its own from harmless parts."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import string
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelkit import workflow
from kernelkit.bundle import secret_rules, secrets
from kernelkit.bundle.secrets import Credential, SecretFinding
from kernelkit.config import load_config
from kernelkit.errors import PreflightError
from kernelkit.notebook.preflight import find_secrets
from kernelkit.notebook.problems import ProblemList

Make = Callable[..., Path]

LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
URL = LETTERS + "_-"
UPPER = string.ascii_uppercase + "234567"


def some(count: int, alphabet: str = LETTERS) -> str:
    """The same for the same arguments."""
    choice = random.Random(f"{count} {alphabet}").choice
    return "".join(choice(alphabet) for _ in range(count))


def pem(kind: str) -> str:
    body = base64.encodebytes(random.Random(kind).randbytes(900)).decode()
    mark = f"{kind} PRIVATE " + "KEY" + (" BLOCK" if kind == "PGP" else "")
    return f"-----BEGIN {mark.strip()}-----\n{body}-----END {mark.strip()}-----"


def jwt() -> str:
    parts = [b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"12","name":"Ann"}', b"\x07\xf1" * 16]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


KEY = some(32, HEX)
WANDB = some(40, HEX)
AWS = "AK" + "IA" + some(16, UPPER)
SLACK = "-".join(["xo" + "xb", some(12, "123456789"), some(11, "123456789"), some(24)])
ACCOUNT = {
    "type": "service_account",
    "private_key_id": some(40, HEX),
    "private_key": pem(""),
    "client_email": "ann@project.iam.gserviceaccount.com",
}

PLANTED = {  # the text, and its secret or a word of its first line
    "kaggle.json": (json.dumps({"username": "ann", "key": KEY}), KEY),
    "kaggle.json, indented": (json.dumps({"username": "ann", "key": KEY}, indent=2), KEY),
    "kaggle.json, turned": (json.dumps({"key": KEY, "username": "ann"}), KEY),
    "KAGGLE_KEY in Python": (f'os.environ["KAGGLE_KEY"] = "{KEY}"', KEY),
    "KAGGLE_KEY in .env": (f"export KAGGLE_KEY={KEY}", KEY),
    "Kaggle token": ("KG" + "AT_" + KEY, KEY),
    "AWS id": (f'aws_access_key_id = "{AWS}"', AWS),
    "AWS id alone": (f'connect("{AWS}")', AWS),
    "AWS secret": (f'aws_secret_access_key = "{some(40)}"', some(40)),
    "AWS secret in .env": (f"AWS_SECRET_ACCESS_KEY={some(40, LETTERS + '+/')}", "AWS_SECRET"),
    "GitHub": (f'x("gh{"p_" + some(36)}")', some(36)),
    "GitHub, oauth": (f'x("gh{"o_" + some(36)}")', some(36)),
    "GitHub, fine-grained": (f'x("github{"_pat_" + some(22) + "_" + some(59)}")', some(59)),
    "GitLab": (f'x("gl{"pat-" + some(20)}")', some(20)),
    "Hugging Face": (f'login("h{"f_" + some(34)}")', some(34)),
    "OpenAI, old": (f'x("s{"k-" + some(20) + "T3Blbk" + "FJ" + some(20)}")', some(20)),
    "OpenAI": (f'x("s{"k-proj-" + some(74, URL) + "T3Blbk" + "FJ" + some(74, URL)}")', "proj"),
    "OpenAI, 48": (f'x("s{"k-" + some(48)}")', some(48)),
    "Anthropic": (f'x("s{"k-" + "ant-api03-" + some(93, URL) + "AA"}")', some(93, URL)),
    "W&B": (f'wandb.login(key="{WANDB}")', WANDB),
    "W&B in Python": (f'os.environ["WANDB_API_KEY"] = "{WANDB}"', WANDB),
    "W&B in .env": (f"WANDB_API_KEY={WANDB}", WANDB),
    "Slack": (f'x("{SLACK}")', SLACK),
    "Slack webhook": (
        "https://hooks.sl" + f"ack.com/services/T{some(8, UPPER)}/B{some(10, UPPER)}/{some(24)}",
        some(24),
    ),
    "Stripe": (f'x("sk{"_live_" + some(24)}")', some(24)),
    "Google": (f'x("AI{"za" + some(35, URL)}")', some(35, URL)),
    "Google account": (json.dumps(ACCOUNT, indent=1), "BEGIN"),
    "Azure storage": (f'x("AccountName=ann;AccountKey={some(86)}==;Suffix=x")', some(86)),
    "Azure client": (f'x("{some(3)}8{"Q~" + some(34)}")', some(34)),
    "npm": (f"//registry.npmjs.org/:_auth{'Token=npm_' + some(36)}", some(36)),
    "PyPI": (f'x("pypi{"-AgEIcHlwaS5vcmc" + some(160, URL)}")', some(160, URL)),
    "JWT": (f'x("{jwt()}")', jwt()),
    "address": (f'x("https://ann:{some(14)}@example.org/simple")', some(14)),
    "database": (f'x("postgresql://ann:{some(14)}@db.local:5432/salt")', some(14)),
    "key": (pem(""), "BEGIN"),
    "key, RSA": (pem("RSA"), "BEGIN"),
    "key, EC": (pem("EC"), "BEGIN"),
    "key, DSA": (pem("DSA"), "BEGIN"),
    "key, OpenSSH": (pem("OPENSSH"), "BEGIN"),
    "key, encrypted": (pem("ENCRYPTED"), "BEGIN"),
    "key, PGP": (pem("PGP"), "BEGIN"),
    "netrc": (f"machine api.wandb.ai\n  login user\n  password {WANDB}", WANDB),
    "netrc, one line": (f"machine git.local login ann password {some(16)}", some(16)),
    "password": (f'password = "{some(16, LETTERS + "!%")}"', "password"),
    "password of a database": (f"DB_PASSWORD = '{some(12)}'", some(12)),
    "api key": (f'connect(api_key="{some(32)}")', some(32)),
    "token in JSON": (json.dumps({"api_token": some(40)}), some(40)),
    "Django": (f'SECRET_KEY = "{some(50)}"', some(50)),
    "bearer": (f'x("Bearer {some(40)}")', some(40)),
    "Telegram": (f'x("{some(10, "123456789")}:AA{some(33)}")', some(33)),
    "Discord": (f'x("https://discord.com/api/webhooks/123456789012345678/{some(68)}")', some(68)),
    "SendGrid": (f'x("SG.{some(22)}.{some(43)}")', some(43)),
}

HARMLESS = '''"""`http://user:password@host/` are forms,
and so is `machine host login ann password secret`."""
import os
from kaggle_secrets import UserSecretsClient
password = os.environ["DB_PASSWORD"]
token = UserSecretsClient().get_secret("wandb-api-key-2")
api_key = "WANDB_API_KEY"
pad_token = "<|endoftext|>"
secret_name = "projects/salt/secrets/wandb2"
token = "segment_token_0"
access_token_url = "https://accounts.local/o/oauth2/token2"
aws_access_key_id = "AKIAIOSFODNN7EXAMPLE"
password = "your_password1"
key = "5f2b0c3de1a94f6f8d0c3b2a1f0e9d8c"  # of a cache
commit = "wandb @ git+https://github.local/wandb@0123456789abcdef0123456789abcdef01234567"
sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
if "-----BEGIN PRIVATE KEY-----" in text or "-----BEGIN RSA PRIVATE KEY-----" in text:
    raise ValueError("a private key")
uuid_token = "123e4567-e89b-12d3-a456-426614174000"
'''


def source_of(text: str) -> str:
    return f"# one line before\nTEXT = r'''\n{text}\n'''\n"


def found(project: Path, *settings: str, own: tuple[Credential, ...] = ()) -> list[str]:
    config = load_config(project, settings=settings, environment={})
    return [finding.where for finding in find_secrets(workflow.render_kernel(config), own)]


@pytest.fixture
def all_planted(make_project: Make) -> Path:
    return make_project(
        {f"pkg/m{i:02}.py": source_of(text) for i, (text, _) in enumerate(PLANTED.values())}
    )


def test_every_kind_of_secret_is_found_with_file_and_line(all_planted: Path) -> None:
    places = found(all_planted)
    for i, (name, (text, mark)) in enumerate(PLANTED.items()):
        before, _, _ = source_of(text).partition(mark)
        assert f"pkg/m{i:02}.py:{before.count(chr(10)) + 1}" in places, name
    assert len({place.partition(":")[0] for place in places}) == len(PLANTED)


def test_the_command_line_prints_the_place_but_never_the_secret(
    all_planted: Path, cli: Callable[..., object]
) -> None:
    environment = {"KAGGLE_USERNAME": "ann", "KAGGLE_KEY": "x" * 32}
    nowhere = ("--endpoint", "http://127.0.0.1:9", "--json")
    for command in (["preflight"], ["preflight", "--json"], ["push", *nowhere]):
        done = cli(*command, "--project", all_planted, expect=3, env=environment)
        said = done.stdout + done.stderr  # type: ignore[attr-defined]
        assert "pkg/m00.py:3" in said
        assert "UserSecretsClient" in said
        for text, mark in PLANTED.values():
            for line in text.splitlines():
                assert len(line) < 20 or line.strip() not in said
            assert len(mark) < 14 or mark not in said


def test_ordinary_code_is_not_a_secret(make_project: Make) -> None:
    picture = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
    hashes = "".join(f"{some(64, HEX)}  file{i}.png\n" for i in range(999))
    project = make_project(
        {
            "pkg/harmless.txt": HARMLESS,
            "pkg/picture.json": json.dumps({"image": picture}),
            "pkg/weights.bin": random.Random(2).randbytes(300_000),
            "pkg/sums.txt": hashes,
            "pkg/config.yaml": "unk_token: unknown_word_1\nsecret: null\npassword: ${PASSWORD1}\n",
        }
    )
    assert found(project) == []


@pytest.mark.parametrize("folder", ["kernelkit", "src_salt", "templates", "tests", "docs"])
def test_this_repository_contains_no_secret(folder: str) -> None:
    root = Path(__file__).parent.parent.parent
    for path in (root / folder).rglob("*"):
        if path.is_file() and path.suffix in {".py", ".j2", ".toml", ".md", ".json", ".csv"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not [match.kind for match in secret_rules.matches(text)], path


def test_the_allow_comment_covers_only_its_own_line(make_project: Make) -> None:
    line = f'x("{AWS}")'
    project = make_project(
        {
            "pkg/same_line.py": f"def f(x):\n    {line}  # pragma: allowlist secret\n    {line}\n",
            "pkg/above.py": f"def f(x):\n    # pragma: allowlist nextline secret\n    {line}\n",
        }
    )
    assert found(project) == ["pkg/same_line.py:3"]


def test_the_project_file_allows_only_the_named_places(make_project: Make) -> None:
    data = f'{{"a": "{AWS}",\n "b": "{AWS}"}}'
    files: dict[str, str | bytes] = {"pkg/data.json": data, "pkg/other.json": data}
    places = ["pkg/data.json:1", "pkg/data.json:2", "pkg/other.json:1", "pkg/other.json:2"]
    assert found(make_project(files)) == places
    allowed = found(make_project(files, keys='allow_secrets = ["pkg/data.json:2"]'))
    assert allowed == [place for place in places if place != "pkg/data.json:2"]
    for all_of_it in ("*", "pkg/", "pkg/data.json", "pkg/*.json:1"):
        assert found(make_project(files, keys=f'allow_secrets = ["{all_of_it}"]')) == places


def test_allowing_does_not_change_the_digest(make_project: Make) -> None:
    plain = workflow.render_kernel(load_config(make_project({}), environment={}))
    keys = 'allow_secrets = ["parameters.a"]'
    allowed = workflow.render_kernel(load_config(make_project({}, keys=keys), environment={}))
    assert allowed.digest == plain.digest


def test_parameters_are_scanned_as_they_are_sent(make_project: Make) -> None:
    extra = '[tool.kernelkit.parameters]\ntoken = ""\nservice = {}\n'
    project = make_project({}, extra=extra)
    assert found(project) == []
    assert found(project, f'token="{some(40)}"') == ["parameters.token"]
    assert found(project, f'service={{ api_key = "{some(40)}" }}') == ["parameters.service"]


def test_profiles_are_scanned_too(make_project: Make) -> None:
    extra = f'[tool.kernelkit.profiles.p.parameters]\nwandb_key = "h{"f_" + some(34)}"\n'
    project = make_project({}, extra=extra)
    assert found(project) == []
    config = load_config(project, profile="p", environment={})
    (finding,) = find_secrets(workflow.render_kernel(config))
    assert finding == SecretFinding("parameters.wandb_key", None, "a Hugging Face token")


def test_metadata_requirements_and_comments_are_scanned(make_project: Make) -> None:
    token = "gh" + "p_" + some(36)
    assert found(make_project({}), f"kernel.title={token}") == ["title"]
    assert found(make_project({}), f'kernel.keywords=["{token}"]') == ["keywords"]
    keys = f'pip = ["salt @ https://ann:{some(14)}@example.org/salt.whl"]'
    assert found(make_project({}, keys=keys)) == ["pip"]
    extra = f"[tool.kernelkit.parameters]\nepochs = 1  # was {token}\n"
    assert found(make_project({}, extra=extra)) == ['the cell "parameters":1']


def test_template_files_are_scanned(make_project: Make) -> None:
    text = f'# A cell.\nlogin("h{"f_" + some(34)}")\n'
    files: dict[str, str | bytes] = {"cells/55-login.py.j2": text, "cells/part/x.txt": text}
    project = make_project(files, keys='templates = "cells"')
    assert found(project) == ["cells/55-login.py.j2:2", "cells/part/x.txt:2"]


@pytest.mark.parametrize("layout", ["cells", "compressed"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_data_files_are_scanned_in_every_layout_and_encoding(
    make_project: Make, layout: str, encoding: str
) -> None:
    content = f"é,1\né,{AWS}\n".encode(encoding)
    project = make_project({"pkg/data.csv": content}, keys=f'layout = "{layout}"')
    assert found(project) == ["pkg/data.csv:2"]


def test_binary_files_are_scanned_too(make_project: Make) -> None:
    noise = random.Random(3).randbytes(50_000).replace(b"\n", b" ")
    content = noise + json.dumps({"username": "ann", "key": KEY}).encode() + noise
    assert found(make_project({"pkg/weights.bin": content})) == ["pkg/weights.bin:1"]


def test_a_secret_across_a_chunk_boundary_is_found() -> None:
    for before in range(secret_rules._PIECE - 80, secret_rules._PIECE + 20):
        (match,) = {m.start for m in secret_rules.matches("." * before + "\n" + AWS)}
        assert match == before + 1


@pytest.mark.parametrize(
    "unit", ["eyJ", "=eyJ", "//a/:_authToken", "sk-T3BlbkFJ", "://a:", "password", 'token="', "x"]
)
def test_one_long_line_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    began = time.process_time()
    list(secret_rules.matches(text))
    assert time.process_time() - began < 8  # about 1 s on an idle machine


def test_this_machines_own_credentials_are_found(make_project: Make, tmp_path: Path) -> None:
    """Their format alone does not identify them as secrets."""
    project = make_project({})
    home = tmp_path / "home"
    values = {name: some(20 + i, HEX + "g") for i, name in enumerate(["key", "token", "access"])}
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle" / "kaggle.json").write_text(
        json.dumps({"username": "annabella2", "key": values["key"]})
    )
    (home / ".kaggle" / "access_token").write_text(values["access"] + "\n")
    values["text"] = some(29, HEX + "g")
    (home / ".kaggle" / "access_token.txt").write_text(values["text"])
    dotenv = some(24, HEX + "g")
    (project / ".env").write_text(f"MODE=development\nexport OTHER='{dotenv}'\nN=12345678901\n")
    own = secrets.own_credentials({"KAGGLE_API_TOKEN": values["token"]}, home, project)
    header = base64.b64encode(f"annabella2:{values['key']}".encode()).decode()
    assert {credential.value for credential in own} == {*values.values(), dotenv, header}
    assert not [value for value in values.values() if value in repr(own)]
    sent = "\n".join(["X = '''", *values.values(), dotenv, "development annabella2", "'''", ""])
    (project / "pkg" / "main.py").write_text("def run(): pass\n" + sent)
    assert found(project) == []
    assert found(project, own=tuple(own)) == [f"pkg/main.py:{line}" for line in (3, 4, 5, 6, 7)]


def test_a_push_searches_for_the_key_that_it_uses(
    make_project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project({"pkg/data.txt": f"a\nb {some(30, HEX)} c\n"})
    config = load_config(project, environment={})
    workflow.preflight(config)
    monkeypatch.setenv("KAGGLE_KEY", some(30, HEX))
    with pytest.raises(PreflightError) as caught:
        workflow.preflight(config)
    assert isinstance(caught.value.details, ProblemList)
    (problem,) = caught.value.details.problems
    assert problem.subject == "pkg/data.txt:2"
    assert "KAGGLE_KEY" in problem.message
    assert some(30, HEX) not in repr(problem)


@pytest.mark.parametrize("value", ["kkkkkkkkkkkk\udcff", "\udc80\udc81 café café"])
def test_a_credential_of_any_bytes_is_searched_for(make_project: Make, value: str) -> None:
    own = tuple(secrets.own_credentials({"KAGGLE_API_TOKEN": value}, Path("/"), Path("/")))
    assert found(make_project({}), own=own) == []


def test_scanning_uses_no_network(all_planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """detect-secrets can ask a secret's issuer whether it is valid, which would leak it."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="a connection"):
        socket.create_connection(("127.0.0.1", 9))
    assert len(found(all_planted)) >= len(PLANTED)
    assert os.environ.get("KAGGLE_KEY") is None
