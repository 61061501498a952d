"""The registry: the decision of stage `promote` as a version of a model in MLflow's registry, and who is its champion.

    python -m tunemill.registry [--recipe NAME] [--dry-run] [--force]      (make promote)

A version is one policy with one decision about it: the same two again are no new version. What becomes of it:

- criteria missed: a version with the tag `verdict: refused` and no alias. Aliases are for what may be served; a refusal touches none.
- criteria met, and there is no champion: alias `champion`.
- criteria met, and the champion answered the same test items: both are compared item by item (`promotion.duel`). Not worse by more than
  `promote.champion_margin`, it becomes `champion`, and the one before keeps its version, with the tag `superseded`; else `challenger`.
- criteria met, but the champion was judged by other test items: nothing is compared. The champion stays, this one is `challenger`;
  `--force` makes it the champion all the same.

The database is the main checkout's (`tunemill.tracking`), from a recipe's workspace too. Whatever is written can be written again:
the run with its artifacts first, then the version, the aliases last. A kill at any place leaves the champion as it was or as it is to
be, and the next call does the rest.

Exit status: 0 promoted, or champion already; 2 a mistake (nothing to register, params.yaml has changed since); 3 refused by the
criteria; 4 the registry cannot be reached; 5 criteria met, but the champion stays. (make itself says 2 of every status but 0.)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunemill import artifacts, lineage, promotion, recipes, records, runtime, tracking
from tunemill.errors import UserError
from tunemill.params import ParamsFile

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
KEY = "tunemill.key"
"""Tag of a version and of its run: the hash of what was registered."""
SUPERSEDES, SUPERSEDED = "supersedes", "superseded"
"""Tags with a version's number: whom a champion took the place of, and who took its place."""
DECISION, CARD, SCORES = "decision.json", "README.md", "scores.jsonl"
MODEL = "model"
"""Folder of a run's artifacts with the policy's files."""
DESCRIPTION = 5000
"""Characters that MLflow's database keeps of a description."""
SECONDS = 5
"""How long a server may take to answer whether it is there."""

Outcome = Literal["champion", "already", "challenger", "refused"]
STATUS: dict[Outcome, int] = {"champion": 0, "already": 0, "refused": 3, "challenger": 5}
UNREACHABLE = 4


@dataclass(frozen=True)
class Offer:
    """What is to be registered."""

    workspace: Path
    decision: Mapping[str, Any]
    card: str
    scores: Mapping[str, Mapping[str, Any]]
    """Test item → its group and scores."""
    key: str
    tags: Mapping[str, str]
    """The version's lineage."""

    @property
    def name(self) -> str:
        """Of the registered model."""
        return str(self.decision["model"])

    @property
    def promoted(self) -> bool:
        """Whether all criteria are met."""
        return bool(self.decision["verdict"] == "promoted")


@dataclass(frozen=True)
class Standing:
    """What the registry has of this model."""

    exists: bool = False
    mine: ModelVersion | None = None
    """The version with the offer's key."""
    champion: ModelVersion | None = None
    challenger: ModelVersion | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of an offer."""

    outcome: Outcome
    reason: str
    champion: str | None
    """Number of the champion before."""

    @property
    def status(self) -> int:
        """The command's exit status."""
        return STATUS[self.outcome]


# ── what is offered ───────────────────────────────────────────────────────────────────────────────────────────────


def offer(workspace: Path) -> Offer:
    """The decision that stands in a workspace, with its lineage.

    Raises:
        UserError: there is none, or params.yaml asks for another one by now.
    """
    folder = workspace / "artifacts" / "promote"
    if not (folder / DECISION).is_file():
        raise UserError(
            "no decision to register", where=str(folder / DECISION), fix="make run, which decides", exit_code=2
        )
    decision = artifacts.read_json(folder / DECISION)
    lock = artifacts.read_lock(workspace / "dvc.lock")
    _current(workspace, lock)
    artifacts.evaluated(
        decision["candidate"], decision["policy_hash"], workspace / decision["policy"], workspace / decision["base"]
    )
    text = (folder / DECISION).read_bytes()
    key = hashlib.blake2b(text, digest_size=16).hexdigest()  # the hash of the policy stands in it
    return Offer(
        workspace=workspace,
        decision=decision,
        card=artifacts.read_text(folder / CARD),
        scores={row["id"]: row for _, row in records.read_objects(folder / SCORES)},
        key=key,
        tags={KEY: key, **_lineage(workspace, decision, lock)},
    )


def _current(workspace: Path, lock: Mapping[str, Any]) -> None:
    """See that the decision is about what params.yaml asks for now.

    Raises:
        UserError: it is not, or nobody knows what it is about.
    """
    again = "make run, which decides anew for what has changed, and registers"
    stages = lock.get("stages", {})
    if "promote" not in stages:
        raise UserError("no stage 'promote'", where=str(workspace / "dvc.lock"), fix=again, exit_code=2)
    file = ParamsFile(workspace / "params.yaml")
    for stage, sections in (("scope", ("scope",)), ("promote", ("promote", "candidates"))):
        decided = stages.get(stage, {}).get("params", {}).get("params.yaml", {})
        for section in sections:
            if decided.get(section) != file.values(section):
                raise UserError(
                    "it has changed since the decision was made",
                    where=f"{file.path}:{file.line((section,))}: {section}",
                    fix=again,
                    exit_code=2,
                )


def _lineage(workspace: Path, decision: Mapping[str, Any], lock: Mapping[str, Any]) -> dict[str, str]:
    """Where a version comes from: data, code, parameters, weights, and every stage that led to it."""
    commit, dirty = _code(tracking.home(workspace))
    candidate = decision["candidate"]
    stages = lock.get("stages", {})
    names = lineage.chain(lock, [decision["policy"], decision["base"]])
    names += [each for each in (f"evaluate@{candidate}", "efficiency", "compare", "promote") if each in stages]
    data = [out for out in stages.get("validate", {}).get("outs", ()) if out["path"] == "artifacts/validate"]
    return {
        "verdict": decision["verdict"],
        "candidate": candidate,
        "policy": decision["policy"],
        "policy_hash": decision["policy_hash"],
        "base": decision["base"],
        "base_hash": decision["base_hash"],
        "parent_model": decision["base_model"],
        "license": decision["license"],
        "data_md5": data[0]["md5"] if data else "unknown",
        "test_hash": decision["test_hash"],
        "params_hash": hashlib.blake2b((workspace / "params.yaml").read_bytes(), digest_size=16).hexdigest(),
        "code.commit": commit,
        "code.dirty": dirty,
        # (MLflow takes no @ in a name.)
        **{f"stage.{name.replace('@', '/')}": _entry_hash(stages[name]) for name in dict.fromkeys(names)},
    }


def _entry_hash(entry: Mapping[str, Any]) -> str:
    """Hash of a stage's entry in dvc.lock: its command, dependencies, parameters and outputs."""
    return hashlib.blake2b(json.dumps(entry, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _code(root: Path) -> tuple[str, str]:
    """The commit of the checkout, and whether its code or parameters differ from it; results (dvc.lock, metrics) are no code."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":!dvc.lock", ":!metrics")
    return commit or "unknown", "unknown" if commit is None or changed is None else str(bool(changed)).lower()


# ── what becomes of it ────────────────────────────────────────────────────────────────────────────────────────────


def planned(given: Offer, standing: Standing, theirs: Mapping[str, Mapping[str, Any]] | None, force: bool) -> Plan:
    """What becomes of an offer. No I/O.

    Args:
        given: the offer.
        standing: of the registry.
        theirs: the champion's test items and their scores; None where it has none that can be read.
        force: take the place of a champion that it cannot be compared with.
    """
    champion, before = standing.champion, _number(standing.champion)
    if not given.promoted:
        return Plan("refused", "the criteria are not met, so no alias is given", before)
    if champion is None:
        return Plan("champion", "there was none before", None)
    if _number(standing.mine) == before:
        return Plan("already", "nothing has changed", before)
    why = _incomparable(given, champion, theirs)
    if why:
        if force:
            return Plan("champion", f"{why}; forced", before)
        return Plan(
            "challenger", f"{why}, so version {before} stays the champion (--force, make promote FORCE=1)", before
        )
    assert theirs is not None
    bootstrap = given.decision["bootstrap"]
    found = promotion.duel(
        given.scores,
        theirs,
        bootstrap["metric"],
        given.decision["champion_margin"],
        method=bootstrap["method"],
        resamples=bootstrap["resamples"],
        seed=bootstrap["seed"],
        level=bootstrap["level"],
    )
    return Plan("champion" if found.replaces else "challenger", found.sentence, before)


def _number(version: ModelVersion | None) -> str | None:
    """A version's number; one store of MLflow gives a text, another an int."""
    return None if version is None else str(version.version)


def _incomparable(given: Offer, champion: ModelVersion, theirs: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Why an offer cannot be compared with the champion; empty where it can."""
    if champion.tags.get("test_hash") != given.decision["test_hash"]:
        return f"version {champion.version} was judged by other test items, which compares with nothing"
    metric = given.decision["bootstrap"]["metric"]
    if theirs is None or theirs.keys() != given.scores.keys() or any(metric not in row for row in theirs.values()):
        return f"the test scores of version {champion.version} cannot be read"
    return ""


def told(given: Offer, plan: Plan, number: str) -> str:
    """One line about what became of it, or would."""
    name = f"{given.name} version {number}"
    if plan.outcome == "refused":
        kept = f"version {plan.champion} stays the champion" if plan.champion else "there is no champion"
        return f"{name} is refused: {plan.reason}; {kept}"
    if plan.outcome == "already":
        return f"{name} is the champion already: {plan.reason}"
    if plan.outcome == "challenger":
        return f"{name} is the challenger: {plan.reason}"
    after = f", after version {plan.champion}" if plan.champion else ""
    return f"{name} is the champion{after}: {plan.reason}"


# ── the registry ──────────────────────────────────────────────────────────────────────────────────────────────────


def register(workspace: Path, *, dry_run: bool = False, force: bool = False) -> tuple[Plan, str]:
    """Register the decision that stands in a workspace.

    Args:
        workspace: the checkout, or a recipe's workspace in it.
        dry_run: only say what would be done.
        force: take the place of a champion that it cannot be compared with.

    Returns:
        What became of it, and that in a line.

    Raises:
        UserError: there is nothing to register, or the registry cannot be reached.
    """
    given = offer(workspace)
    root = tracking.home(workspace)
    if dry_run:
        database = _database(root)
        if database is not None and not database.is_file():  # MLflow would make it
            plan = planned(given, Standing(), None, force)
            return plan, f"would be: {told(given, plan, '1')}"
        with _reached(root):
            client = tracking.connect(root)
            standing, numbers = _standing(client, given)
            plan = planned(given, standing, _scores_of(client, standing.champion), force)
        number = _number(standing.mine) or str(max(numbers, default=0) + 1)
        return plan, told(
            given, plan, number
        ) if plan.outcome == "already" else f"would be: {told(given, plan, number)}"
    # Two registrations side by side would both find no version of theirs.
    with runtime.ownership(root / "work" / "registry.lock", "the registry"), _reached(root):
        client = tracking.connect(root)
        standing, _ = _standing(client, given)
        plan = planned(given, standing, _scores_of(client, standing.champion), force)
        number = _write(client, root, given, standing, plan)
    return plan, told(given, plan, number)


def _database(root: Path) -> Path | None:
    """The file that the registry is in; None where it is a server or another database."""
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return root / "mlflow.db"
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _reached(root: Path) -> Iterator[None]:
    """Tell what a registry that cannot be reached says, as a mistake of its own exit status.

    Raises:
        UserError: it cannot.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or str(root / "mlflow.db")
    # MLflow would try again for minutes; the next call registers what this one could not.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS).close()
        except urllib.error.HTTPError:
            pass  # somebody is there, and may want to know who asks
        except OSError as error:
            raise _unreachable(uri, error) from None
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: Exception) -> UserError:
    why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(
        f"the registry cannot be reached, or does not answer as it should: {why}",
        where=uri,
        fix="see that it is there, then: make promote, which continues where this stopped",
        exit_code=UNREACHABLE,
    )


def _standing(client: MlflowClient, given: Offer) -> tuple[Standing, list[int]]:
    """What the registry has of the offer's model, and the numbers of its versions; nothing is written."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(given.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return Standing(), []
    versions: dict[str, ModelVersion] = {}
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{given.name}'", page_token=token)
        versions |= {str(each.version): each for each in page}
        token = page.token
        if not token:
            break
    mine = [each for each in versions.values() if each.tags.get(KEY) == given.key]
    aliases = {alias: str(number) for alias, number in model.aliases.items()}
    return Standing(
        True,
        min(mine, key=lambda each: int(each.version), default=None),
        versions.get(aliases.get(CHAMPION, "")),
        versions.get(aliases.get(CHALLENGER, "")),
    ), [int(each) for each in versions]


def _scores_of(client: MlflowClient, champion: ModelVersion | None) -> dict[str, Mapping[str, Any]] | None:
    """The champion's test items, out of its run; None where they are not there."""
    from mlflow.exceptions import MlflowException

    if champion is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(champion.run_id, SCORES, folder))
        except (MlflowException, OSError):
            return None  # its run was deleted, or its artifacts: `planned` tells
        return {row["id"]: row for _, row in records.read_objects(path)}


def _write(client: MlflowClient, root: Path, given: Offer, standing: Standing, plan: Plan) -> str:
    """Everything that a plan says, in an order in which a kill leaves nothing that the next call does not mend.

    Returns:
        The version's number.
    """
    # 1. The run, with all that belongs to the version.
    run_id = _record(client, root, given)

    # 2. The model and its version: one call makes it with description and tags, or it is not there.
    if not standing.exists:
        client.create_registered_model(given.name, description=_described(given.decision["sentence"], run_id))
    number = _number(standing.mine)
    if number is None:
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
        described = _described(given.card, run_id)
        made = client.create_model_version(
            given.name, source, run_id=run_id, tags=dict(given.tags), description=described
        )
        number = str(made.version)

    # 3. The aliases, last. Whom it supersedes stands at the new champion before the alias moves, so that the next call finds it.
    if plan.outcome == "champion":
        if plan.champion:
            client.set_model_version_tag(given.name, number, SUPERSEDES, plan.champion)
        client.set_registered_model_alias(given.name, CHAMPION, number)
    elif plan.outcome == "challenger" and _number(standing.challenger) != number:
        client.set_registered_model_alias(given.name, CHALLENGER, number)
    if plan.outcome in ("champion", "already"):
        _settle(client, given.name, number)
    return number


def _settle(client: MlflowClient, name: str, champion: str) -> None:
    """What follows from an alias `champion`: the one before is superseded, this one is not, and is no challenger any more."""
    version = client.get_model_version(name, champion)
    before = version.tags.get(SUPERSEDES)
    if before and client.get_model_version(name, before).tags.get(SUPERSEDED) != champion:
        client.set_model_version_tag(name, before, SUPERSEDED, champion)
    if SUPERSEDED in version.tags:
        client.delete_model_version_tag(name, champion, SUPERSEDED)
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == champion:
        client.delete_registered_model_alias(name, CHALLENGER)


def _record(client: MlflowClient, root: Path, given: Offer) -> str:
    """The run of a registration, made or completed: decision, card, scores, parameters, dvc.lock, and the policy's files."""
    experiment_id = tracking.experiment(client, root, tracking.scope_name(given.workspace / "params.yaml"))
    found = client.search_runs([experiment_id], f"tags.`{KEY}` = '{given.key}' and tags.`tunemill.stage` = 'registry'")
    if found and found[0].info.status == "FINISHED":
        return str(found[0].info.run_id)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        parent = tracking.last_lifecycle(client, experiment_id, given.workspace)
        tags = {
            "tunemill.stage": "registry",
            "mlflow.source.name": "tunemill.registry",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent} if parent else {}),
            **given.tags,
        }
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=f"registry {given.name}").info.run_id)
    folder = given.workspace / "artifacts" / "promote"
    for path in (
        *(folder / each for each in (DECISION, CARD, SCORES)),
        *(given.workspace / each for each in ("params.yaml", "dvc.lock")),
    ):
        client.log_artifact(run_id, str(path))
    policy = given.workspace / given.decision["policy"]
    files = sorted(each for each in policy.rglob("*") if each.is_file() and each.name != CARD)
    if sum(each.stat().st_size for each in files) <= given.decision["weights_mib"] * 2**20:
        for file in files:
            inside = file.relative_to(policy).parent.as_posix()
            client.log_artifact(run_id, str(file), MODEL if inside == "." else f"{MODEL}/{inside}")
    else:
        listed = [
            {
                "path": (Path(given.decision["policy"]) / file.relative_to(policy)).as_posix(),
                "bytes": file.stat().st_size,
                "md5": tracking.md5(file),
            }
            for file in files
        ]
        client.log_dict(run_id, {"files": listed}, f"{MODEL}/manifest.json")
    client.log_artifact(run_id, str(folder / CARD), MODEL)
    score = given.decision["score"]["value"]
    tracking.log_metrics(client, run_id, {f"test/{given.decision['primary_metric']}": score})
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _described(text: str, run_id: str) -> str:
    """A text that fits MLflow's database: the card without its front matter, cut at a line where it is too long."""
    text = text.partition("---\n")[2].partition("---\n")[2].strip() if text.startswith("---\n") else text
    if len(text) <= DESCRIPTION:
        return text
    rest = f"\n\n… The whole card is {CARD} among the artifacts of run {run_id}."
    return text[: DESCRIPTION - len(rest)].rpartition("\n")[0] + rest


def main() -> int:
    """The command line; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tunemill.registry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--recipe", metavar="NAME", help="the decision of a run of this recipe")
    place.add_argument("--workspace", type=Path, default=Path.cwd(), metavar="FOLDER", help="where the pipeline ran")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--force", action="store_true", help="become champion even where nothing can be compared")
    arguments = parser.parse_args()
    try:
        workspace = _workspace(arguments.recipe) if arguments.recipe else arguments.workspace.resolve()
        if not tracking.enabled():
            given = offer(workspace)
            print(f"verdict    {given.decision['sentence']}")
            print("registry   nothing was registered: TUNEMILL_TRACKING=off")
            return 0 if given.promoted else STATUS["refused"]
        plan, line = register(workspace, dry_run=arguments.dry_run, force=arguments.force)
        print(f"verdict    {artifacts.read_json(workspace / 'artifacts/promote' / DECISION)['sentence']}")
        print(f"registry   {line}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return plan.status


def _workspace(recipe: str) -> Path:
    """Where a recipe has run.

    Raises:
        UserError: there is no such recipe, or it has not run.
    """
    recipes.recipe_path(Path.cwd(), recipe)
    place = Path.cwd() / "work" / "recipes" / recipe
    if not place.is_dir():
        raise UserError("this recipe has not run", where=str(place), fix=f"make run RECIPE={recipe}", exit_code=2)
    return place


if __name__ == "__main__":
    sys.exit(main())
