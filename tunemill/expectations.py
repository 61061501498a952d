"""What every record type must satisfy, as Great Expectations suites, and the data docs (HTML) that show it.

The quarantine has judged row by row before; these suites say in public what is left, and fail when that is not so. The
pages depend on the data only: every time on them is 2000-01-01, random element ids are numbered, and the pictures that
tell the pages' maker who opens them are gone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemill.errors import UserError
from tunemill.records import Example, HarmlessPrompt, Rating, RedTeamPrompt, Refusal, TaskItem

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

_RANDOM_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|\b[0-9a-f]{32}\b")


Row = Example | Rating | Refusal | RedTeamPrompt | HarmlessPrompt | TaskItem


def check(tables: Mapping[str, Sequence[Row]], docs: Path) -> None:
    """Validate every table against the suite of its record type, and render the data docs.

    Args:
        tables: train, validation, test, ratings, ratings_reward, ratings_judge, refusals, red_team and its parts
            (red_team_train, red_team_monitor, red_team_test), harmless_train, harmless_test, tasks_train, tasks_test → rows.
        docs: folder for the HTML pages.

    Raises:
        UserError: a table does not satisfy its suite.
    """
    # Read at import: no usage data leaves the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import datetime
    import logging

    import great_expectations as gx
    import pandas
    from great_expectations.core.run_identifier import RunIdentifier

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        for site in list(context.get_site_names()):
            context.delete_data_docs_site(site)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": folder}
        pages: Any = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": store,
            "show_how_to_buttons": False,
        }
        context.add_data_docs_site("tunemill", pages)
        source = context.data_sources.add_pandas("rows")
        definitions, frames = [], {}
        for name, rows in tables.items():
            frames[name] = pandas.DataFrame([_columns(row) for row in rows])
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=_suite(name, frames)))
            definitions.append(
                (name, context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite)))
            )
        failed = []
        for name, definition in definitions:
            checkpoint = context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition]))
            run_id = RunIdentifier(run_name=name, run_time=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
            result = checkpoint.run(batch_parameters={"dataframe": frames[name]}, run_id=run_id)
            for outcome in next(iter(result.run_results.values())).results:
                if not outcome.success:
                    config = outcome.expectation_config
                    failed.append(f"{name}: {config.type} {config.kwargs.get('column', '')}" if config else name)
        if failed:
            raise UserError("the rows left after the quarantine do not satisfy their suites: " + "; ".join(failed))
        context.build_data_docs(site_names=["tunemill"])
        _settle(Path(folder), docs)


def _columns(row: Row) -> dict[str, Any]:
    fields = dataclasses.asdict(row)
    if isinstance(row, Rating):
        fields["scores"] = len(row.scores)
        fields["lowest_score"], fields["highest_score"] = min(row.scores), max(row.scores)
    if isinstance(row, TaskItem):
        fields["choices"] = len(row.choices)
        fields["answers_among_choices"] = row.choices.count(row.completion) if row.choices else 1
    if isinstance(row, HarmlessPrompt):
        fields["answers"] = len(row.answers)
        fields["empty_answers"] = sum(not each.strip() for each in row.answers)
    return fields


def _suite(table: str, frames: Mapping[str, Any]) -> list[Expectation]:
    import importlib

    # The module offers its names through `import *`, which a type checker does not follow.
    gxe: Any = importlib.import_module("great_expectations.expectations")
    ratings = ("ratings", "ratings_reward", "ratings_judge")
    red_team = ("red_team", "red_team_train", "red_team_monitor", "red_team_test")
    harmless = ("harmless_train", "harmless_test")
    texts = {
        **dict.fromkeys(ratings, ("prompt", "response")),
        "refusals": ("prompt", "response"),
        **dict.fromkeys((*red_team, *harmless), ("prompt",)),
        "tasks_train": ("task", "prompt", "completion"),
        "tasks_test": ("task", "prompt", "completion"),
    }.get(table, ("prompt", "completion", "group"))
    suite: list[Expectation] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnValuesToMatchRegex(column="id", regex="^[0-9a-f]{12}$"),
        gxe.ExpectColumnValuesToBeUnique(column="id"),
        gxe.ExpectColumnValuesToNotBeNull(column="source"),
    ]
    for column in texts:
        suite += [
            gxe.ExpectColumnValuesToNotBeNull(column=column),
            gxe.ExpectColumnValuesToMatchRegex(column=column, regex=r"\S"),
        ]
    if table in ratings:
        suite += [
            gxe.ExpectColumnValuesToBeBetween(column="lowest_score", min_value=0, max_value=1),
            gxe.ExpectColumnValuesToBeBetween(column="highest_score", min_value=0, max_value=1),
            gxe.ExpectColumnValuesToBeBetween(column="scores", min_value=1),
        ]
    if table in ("tasks_train", "tasks_test"):
        suite.append(gxe.ExpectColumnValuesToBeBetween(column="answers_among_choices", min_value=1, max_value=1))
    if table in harmless:
        suite.append(gxe.ExpectColumnValuesToBeBetween(column="empty_answers", min_value=0, max_value=0))
    if table == "refusals":
        suite.append(gxe.ExpectColumnValuesToBeBetween(column="refused", min_value=0, max_value=1))
    if table in red_team:
        # Texts to go on from are tested on and never trained on.
        kinds = ["instruction"] if table in ("red_team_train", "red_team_monitor") else ["instruction", "continuation"]
        suite.append(gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=kinds))
    return suite


def _settle(site: Path, docs: Path) -> None:
    """Copy the pages without what differs from run to run, and only those pictures and fonts that they show."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    styles = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.css"))}
    for page, text in pages.items():
        text = re.sub(r"<img\b[^>]*great-expectations-web-assets[^>]*>", "", text)
        text = re.sub(r"url\([^)]*great-expectations-web-assets[^)]*\)", "none", text)
        text = re.sub(r"\b\d{8}T\d{6}\.\d+Z", "20000101T000000.000000Z", text)
        for number, random_id in enumerate(dict.fromkeys(_RANDOM_ID.findall(text))):
            text = text.replace(random_id, f"{number:032x}")
        pages[page] = text
        _copy(text, docs / page.relative_to(site))
    shown = "".join([*pages.values(), *styles.values()])
    for file in sorted(each for each in site.rglob("*") if each.is_file() and each not in pages and each.name in shown):
        target = docs / file.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _copy(text: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="\n")
