"""Set-up: `.venv` with exactly what `requirements.lock` names. Seconds when there is something to do, an instant when not.

    python3 tunemill/install.py            set up
    .venv/bin/python tunemill/install.py --lock    resolve pyproject.toml anew (make lock)

Runs on a bare Python with nothing installed, so it uses the standard library only and also *parses* on Pythons that are
too old, to be able to say so. uv does the installing; it lives beside the environment's own packages (in `.venv/uv`), so
that an exact install cannot remove it. Where uv is not to be had, pip does the same, slower. The machine's own pip
configuration (links, indexes, certificates, time-outs) is read from pip and handed to uv; none is named here.

The lock leaves out torch's platform packages (CUDA and the like): they follow from torch's own metadata, so each machine
gets its own build of the one pinned version.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

OLDEST = (3, 11)
UV = "uv==0.13.9"
# Raised when the way of installing changes: environments that were made the old way are made again.
LAYOUT = 2

# What torch's own metadata asks for on each platform.
PLATFORM = ("nvidia-", "cuda-", "triton")

# prefect 3.8.8 declares `min_items`, which fastapi 0.151 took away: every flow fails then, and `pip check` sees nothing.
SMOKE = "import prefect.server.api.concurrency_limits_v2, dvc.repo"


def main() -> int:
    """Install what is missing; the process's exit status."""
    root = Path(__file__).resolve().parent.parent
    if sys.version_info < OLDEST:
        return _with_newer_python()
    try:
        if "--lock" in sys.argv[1:]:
            resolve(root)
            return 0
        ready = install(root)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        fail(
            "set-up did not finish: `{}` ended with {}".format(command, error.returncode),
            "look at the lines above; then run the same make target again: set-up starts over by itself",
        )
    if "--say" in sys.argv[1:]:
        print("ready: .venv" if ready else "ready: .venv (nothing to install)")
    return 0


def install(root: Path) -> bool:
    """Bring `.venv` under `root` in line with `requirements.lock`.

    Returns:
        Whether there was anything to do.

    Raises:
        subprocess.CalledProcessError: a step failed; its output has been shown.
    """
    venv, lock = root / ".venv", root / "requirements.lock"
    stamp, unfinished = venv / "installed.json", venv / "unfinished"
    wanted = {"layout": LAYOUT, "lock": hashlib.sha256(lock.read_bytes()).hexdigest(), "python": sys.version.split()[0]}
    if _read(stamp) == wanted and (venv / "bin" / "python").exists():
        return False
    with _alone(root / "work" / "install.lock"):
        # Another set-up may have done it while this one waited.
        found = _read(stamp)
        if found == wanted and (venv / "bin" / "python").exists():
            return False
        began = time.monotonic()
        # Whatever cannot be trusted is made anew: an install that was cut short may have left half a package behind.
        fresh = found is None or unfinished.exists() or {**found, "lock": ""} != {**wanted, "lock": ""}
        if fresh:
            if venv.exists():
                say("removing an environment that was not finished, or made by another Python")
                shutil.rmtree(str(venv))
            create(venv)
        unfinished.touch()
        count = sum(1 for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum())
        say("installing {} packages into .venv (a minute or two the first time)".format(count))
        python, environment = venv / "bin" / "python", os.environ.copy()
        uv = get_uv(venv)
        if uv is None:
            say("uv cannot be had here: using pip, which takes some minutes")
            command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(lock)]
        else:
            settings = pip_settings(python)
            environment.update(uv_environment(settings, os.environ))
            # Not `sync`: the lock leaves out torch's platform packages. `--exact` removes what nothing asks for.
            command = [
                str(uv),
                "pip",
                "install",
                "--exact",
                "--compile-bytecode",
                "--quiet",
                "--python",
                str(python),
                "--index-strategy",
                "unsafe-best-match",
                "-r",
                str(lock),
            ]
            if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
                command.insert(3, "--no-index")
        _run(command, environment)
        check(python)
        unfinished.unlink()
        _write(stamp, wanted)
        say("done in {:.0f} s".format(time.monotonic() - began))
    return True


def resolve(root: Path) -> None:
    """Write `requirements.lock` anew from pyproject.toml; versions that still fit stay as they are.

    Raises:
        subprocess.CalledProcessError: there is no solution; uv has said why.
    """
    venv, lock = root / ".venv", root / "requirements.lock"
    uv = get_uv(venv)
    if uv is None:
        fail("a lock cannot be made without uv", "see that pip can install {}".format(UV))
    environment = {**os.environ, **uv_environment(pip_settings(venv / "bin" / "python"), os.environ)}
    partial = lock.with_name(".requirements.lock.partial")
    shutil.copyfile(str(lock), str(partial))  # what is in it is preferred
    _run(
        [
            str(uv),
            "pip",
            "compile",
            str(root / "pyproject.toml"),
            "--group",
            str(root / "pyproject.toml") + ":dev",
            "--universal",
            "--python-version",
            "{}.{}".format(*OLDEST),
            "--no-header",
            "--no-annotate",
            "--quiet",
            "--index-strategy",
            "unsafe-best-match",
            "-o",
            str(partial),
        ],
        environment,
    )
    lines = partial.read_text(encoding="utf-8").splitlines()
    lock.write_text("".join(line + "\n" for line in lines if not line.startswith(PLATFORM)), encoding="utf-8")
    partial.unlink()
    say("requirements.lock names {} packages".format(sum(1 for line in lines if not line.startswith(PLATFORM))))


def interpreter() -> str:
    """The Python to build the environment with: never the environment's own, which an activated shell finds first."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def create(venv: Path) -> None:
    """A new environment with pip in it."""
    try:
        import ensurepip  # noqa: F401 - only whether it is there
        import venv as _  # noqa: F401
    except ImportError as error:
        fail(
            "this Python ({}) cannot make environments: {}".format(sys.executable, error),
            "install its venv package (on Debian and Ubuntu: apt-get install python3-venv)",
        )
    say("making .venv with Python {}".format(sys.version.split()[0]))
    _run([interpreter(), "-m", "venv", str(venv)], os.environ.copy())


def get_uv(venv: Path) -> Path | None:
    """Uv in a folder of its own under the environment, or None where pip cannot get it."""
    place = venv / "uv"
    uv = place / "bin" / "uv"
    if not uv.exists():
        done = subprocess.run(
            [
                str(venv / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--target",
                str(place),
                UV,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode != 0 or not uv.exists():
            lines = done.stderr.strip().splitlines()
            say(lines[-1] if lines else "pip brought no uv")
            return None
    return uv


def pip_settings(python: Path) -> dict[str, str]:
    """What pip would use on this machine for `pip install`: its configuration files and PIP_* variables, merged.

    Returns:
        Option name (`find-links`, `index-url`, …) → value, as pip reads it.
    """
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return merged(listed.stdout)


def merged(listing: str) -> dict[str, str]:
    """The output of `pip config list` as one mapping: the command's section beats `global`, the environment beats both."""
    levels: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.strip().rpartition(".")
        if section in levels:
            levels[section][option] = str(ast.literal_eval(value.strip()))
    return {**levels["global"], **levels["install"], **levels[":env:"]}


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Pip's settings in uv's words. What the user has set for uv directly is left as it is."""
    words = {option: " ".join(value.split()) for option, value in settings.items()}
    told = {
        "UV_FIND_LINKS": ",".join(words.get("find-links", "").split()),
        "UV_DEFAULT_INDEX": words.get("index-url", ""),
        "UV_INDEX": words.get("extra-index-url", ""),
        "UV_INSECURE_HOST": words.get("trusted-host", ""),
        "UV_HTTP_TIMEOUT": words.get("timeout", words.get("default-timeout", "")),
        "SSL_CERT_FILE": words.get("cert", ""),
        "SSL_CLIENT_CERT": words.get("client-cert", ""),
        "ALL_PROXY": words.get("proxy", ""),
        "UV_CONSTRAINT": words.get("constraint", ""),
    }
    return {name: value for name, value in told.items() if value and name not in environment}


def check(python: Path) -> None:
    """Whether the environment is consistent, and whether what `pip check` cannot see works; what runs need is prepared."""
    prepare = Path(__file__).resolve().parent / "prepare.py"
    commands = [[str(python), "-m", "pip", "check"], [str(python), "-c", SMOKE], [str(python), str(prepare)]]
    environment = {**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        for command in commands
    ]
    results = [(process.communicate()[0], process.returncode) for process in running]
    for command, (output, status) in zip(commands, results):
        if status != 0:
            print(output, file=sys.stderr)
            raise subprocess.CalledProcessError(status, command)


def say(text: str) -> None:
    """One line of progress."""
    print("set-up     │ " + text, file=sys.stderr, flush=True)


def fail(what: str, fix: str) -> NoReturn:
    """End with what is wrong and what to do about it."""
    print("error: {}\n  fix: {}".format(what, fix), file=sys.stderr, flush=True)
    sys.exit(1)


def _with_newer_python() -> int:
    for minor in (13, 12, 11, 14):
        found = shutil.which("python3.{}".format(minor))
        # A version manager's stand-in exists for every version, and fails for those not chosen.
        if found and subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return subprocess.call([found] + sys.argv)
    fail(
        "Python {}.{} is too old".format(*sys.version_info[:2]),
        "install Python 3.11 or newer, and say which if it is not `python3`: make PYTHON=/path/to/python3.11 …",
    )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:  # the kernel lets go of it with the process, however that ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def _read(stamp: Path) -> dict[str, object] | None:
    try:
        value = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write(stamp: Path, value: dict[str, object]) -> None:
    partial = stamp.with_name("installed.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(str(partial), str(stamp))


if __name__ == "__main__":
    sys.exit(main())
