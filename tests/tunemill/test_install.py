"""Set-up: honours pip's configuration, does nothing twice, trusts nothing that was cut short."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunemill import install

REPOSITORY = Path(__file__).resolve().parents[2]

LISTING = """\
:env:.find-links='/wheels'
:env:.disable-pip-version-check='1'
global.cert='/etc/ssl/own.pem'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
global.find-links='/elsewhere'
global.index-url='https://index.example/simple'
global.timeout='30'
install.timeout='60'
freeze.timeout='5'
"""


def test_the_environment_beats_the_commands_section_which_beats_global() -> None:
    assert install.merged(LISTING) == {
        "cert": "/etc/ssl/own.pem",
        "extra-index-url": "https://one.example/simple\nhttps://two.example/simple",
        "find-links": "/wheels",
        "index-url": "https://index.example/simple",
        "timeout": "60",
        "disable-pip-version-check": "1",
    }


def test_pips_settings_in_uvs_words_and_the_users_own_come_first() -> None:
    told = install.uv_environment(install.merged(LISTING), {"UV_HTTP_TIMEOUT": "7"})
    assert told == {
        "UV_FIND_LINKS": "/wheels",
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
    }


def test_pip_itself_agrees_on_what_it_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        "[global]\nindex-url = https://a.example/simple\n[install]\nfind-links =\n    /one\n    /two\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    told = install.uv_environment(install.pip_settings(Path(sys.executable)), {})
    assert told["UV_FIND_LINKS"] == "/one,/two"
    assert told["UV_DEFAULT_INDEX"] == "https://a.example/simple"


def test_parses_on_a_python_that_is_too_old_to_run_it() -> None:
    ast.parse((REPOSITORY / "tunemill" / "install.py").read_text(), feature_version=(3, 7))


def test_the_lock_leaves_platform_packages_to_torch_and_pins_all_else() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if line.startswith(install.PLATFORM)]
    assert all("==" in line for line in lines)


def checkout(tmp_path: Path, packages: str) -> Path:
    root = tmp_path / "checkout"
    (root / "tunemill").mkdir(parents=True)
    text = (REPOSITORY / "tunemill" / "install.py").read_text()
    # The smoke test is of packages that a small lock does not have.
    (root / "tunemill" / "install.py").write_text(text.replace(f'SMOKE = "{install.SMOKE}"', 'SMOKE = "import idna"'))
    (root / "tunemill" / "prepare.py").write_text("")
    (root / "requirements.lock").write_text(packages)
    return root


def set_up(root: Path) -> subprocess.CompletedProcess[str]:
    base = Path(sys.base_prefix) / "bin" / "python3"
    return subprocess.run([base, "tunemill/install.py"], cwd=root, text=True, capture_output=True, timeout=300)


def freeze(root: Path) -> list[str]:
    done = subprocess.run(
        [root / ".venv" / "bin" / "python", "-m", "pip", "freeze"], text=True, capture_output=True, check=True
    )
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.network
def test_installs_exactly_the_lock_then_nothing_then_what_changed(tmp_path: Path) -> None:
    root = checkout(tmp_path, "idna==3.10\nattrs==26.1.0\n")
    first = set_up(root)
    assert first.returncode == 0, first.stderr
    assert freeze(root) == ["attrs==26.1.0", "idna==3.10"]

    began = time.monotonic()
    second = set_up(root)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert time.monotonic() - began < 3.0  # 0.15 s on an idle machine

    (root / "requirements.lock").write_text("idna==3.10\n")
    assert set_up(root).returncode == 0
    assert freeze(root) == ["idna==3.10"]


@pytest.mark.slow
@pytest.mark.network
def test_an_install_that_was_killed_is_done_again(tmp_path: Path) -> None:
    root = checkout(tmp_path, "idna==3.10\n")
    base = Path(sys.base_prefix) / "bin" / "python3"
    process = subprocess.Popen(
        [base, "tunemill/install.py"], cwd=root, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (root / ".venv" / "unfinished").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (root / ".venv" / "half").touch()
    done = set_up(root)
    assert done.returncode == 0, done.stderr
    assert "was not finished" in done.stderr
    assert not (root / ".venv" / "half").exists()
    assert freeze(root) == ["idna==3.10"]


@pytest.mark.slow
@pytest.mark.network
def test_a_failed_install_says_so_and_leaves_no_stamp(tmp_path: Path) -> None:
    root = checkout(tmp_path, "idna==999.0\n")
    done = set_up(root)
    assert done.returncode == 1
    assert "error: set-up did not finish" in done.stderr and "Traceback" not in done.stderr
    assert not (root / ".venv" / "installed.json").exists()


def test_an_environment_that_is_ready_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.lock").write_text("idna==3.10\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    digest = "a5e6a0f2"
    monkeypatch.setattr(install.hashlib, "sha256", lambda _: type("Digest", (), {"hexdigest": lambda self: digest})())
    stamp = {"layout": install.LAYOUT, "lock": digest, "python": sys.version.split()[0]}
    (tmp_path / ".venv" / "installed.json").write_text(json.dumps(stamp))
    monkeypatch.setattr(install, "_run", lambda *_: pytest.fail("something was started"))
    assert install.install(tmp_path) is False


def test_the_environment_is_never_made_with_its_own_python() -> None:
    # In an activated shell `python3` is the environment's, which a rebuild deletes first.
    assert sys.prefix != sys.base_prefix  # tests run in the environment
    assert not Path(install.interpreter()).is_relative_to(sys.prefix)
