"""The whole table with one command: train, compress, measure, compare, report: ``python -m tools.study --config C``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brainq_torch.data.classes import CLASSES
from brainq_torch.provenance import find_commit
from tools.command import run_command, write_report
from tools.study.config import RECIPE_FILES, LatencyPlan, Model, RowPlan, StudyPlan, make_parser, read_plan
from tools.study.runs import MANIFEST, PHANTOMS, HandlingCheck, check_finished, find_export, hash_images
from tools.study.steps import Step, StepFailed, Workshop, format_command, hash_file
from tools.study.table import (
    LATENCY,
    PREDICTIONS,
    STUDY,
    Measured,
    describe_data,
    describe_row,
    describe_undone,
    split_latency,
)

REPORT, REPORT_TWIN, GRADCAM = "report.html", "report.md", "gradcam.png"
FAILED = 1
"""Exit code when a row is not done or a file failed parity; the report says which."""

STOPPED = 130
"""Exit code after Ctrl-C, as the shell's own."""

TOGETHER = ("fp32", "fp16")
"""Recipes that one export makes, as the second needs the first; each other one has its own, and fails alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, 1 when not all of it could be done, or 2 for a wrong input."""
    parser = make_parser()
    try:
        return run_command(lambda: run_study(read_plan(parser, parser.parse_args(arguments))))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


def run_study(plan: StudyPlan) -> int:
    """Make what the plan names and is not there yet. Returns the exit code."""
    workshop = Workshop(plan.out, count_steps(plan), lambda line: print(line, flush=True))
    with workshop.locked():
        return _Study(plan, workshop).run()


def count_steps(plan: StudyPlan) -> int:
    """Return how many steps the progress counts."""
    rows = plan.wanted()
    trained = [name for name in needed_models(plan) if not plan.models[name].run]
    exports = {(row.model, export_group(row.export)) for row in rows}
    families = {row.family for row in rows} if plan.latency.rounds else set()
    return len(trained) + len(exports) + len(rows) + len(families) + bool(_gradcam_row(plan)) + 1


def needed_models(plan: StudyPlan) -> list[str]:
    """Return the models of the wanted rows and those that their trainings start or learn from, in the plan's order."""
    needed = {row.model for row in plan.wanted()}
    for name, model in reversed(plan.models.items()):
        if name in needed and not model.run:
            needed |= {other for other in (model.init, model.teacher) if other}
    return [name for name in plan.models if name in needed]


def export_group(recipe: str) -> str:
    """Return the name of the export that makes this recipe."""
    return "float" if recipe in TOGETHER else recipe


def _gradcam_row(plan: StudyPlan) -> str:
    return plan.gradcam if plan.gradcam in {row.id for row in plan.wanted()} else ""


@dataclass
class _Study:
    """One pass over the plan.

    runs: folders of the models so far. failed: model -> why there is none. trainings: model -> its command.
    commands: row -> those behind it. undone: row -> why. troubles: everything that could not be done.
    """

    plan: StudyPlan
    workshop: Workshop
    runs: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trainings: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    undone: dict[str, str] = field(default_factory=dict)
    handling: HandlingCheck = field(default_factory=HandlingCheck)
    troubles: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.plan.out

    def run(self) -> int:
        for name in needed_models(self.plan):
            self._obtain(name)
            rows = [row for row in self.plan.wanted() if row.model == name]
            for group in dict.fromkeys(export_group(row.export) for row in rows):
                self._export_and_measure(name, group, [row for row in rows if export_group(row.export) == group])
        latencies = self._bench() if self.plan.latency.rounds else {}
        gradcam = self._draw_gradcam()
        if not self.measured:
            self._list_troubles()
            print("no row is done: there is nothing to report", flush=True)
            return FAILED
        self._write_study(latencies, gradcam)
        reported = self._report()
        self._list_troubles()
        if reported:
            print(f"report: {self.out / REPORT}", flush=True)
        return FAILED if self.troubles else 0

    def _obtain(self, name: str) -> None:
        """Find or train a model's run, and check that it learned from the same images as the others."""
        model = self.plan.models[name]
        try:
            run = Path(model.run) if model.run else self._train(name, model)
            check_finished(run)
            for difference in self.handling.compare(name, run):
                self.workshop.say(f"warning: {difference}")
            self.runs[name] = run
        except StepFailed as failure:
            self.failed[name] = str(failure)
            self._note(f"model {name}: {failure}")

    def _train(self, name: str, model: Model) -> Path:
        """Train a model, or go on where it was killed. Returns its run folder."""
        self.workshop.begin(f"train {name}")
        root, first = self.plan.data.root, next(iter(self.runs.values()), None)
        lacking = [other for other in (model.init, model.teacher) if other and other not in self.runs]
        if lacking:
            raise StepFailed(f"{lacking[0]}, which it needs, is not there: {self.failed[lacking[0]]}")
        inputs = {
            "configuration": hash_file(Path(model.config)),
            "arguments": repr([*self.plan.fit_arguments, *model.arguments]),
        }
        words = ["brainq_torch.fit", "--config", model.config, *self.plan.fit_arguments, *model.arguments]
        if first is not None:  # the same images in the same parts for all
            inputs["splits"] = hash_file(first / MANIFEST)
            words += ["--data.root", str(self._root(first)), "--data.manifest", str(first / MANIFEST)]
        else:
            inputs["images"] = hash_images(root)
            words += ["--data.root", root]
        if model.init:
            inputs["init"] = hash_file(self.runs[model.init] / "model.ckpt")
            words += ["--init", str(self.runs[model.init])]
        if model.teacher:
            inputs["teacher"] = hash_file(self.runs[model.teacher] / "model.ckpt")
            words.append(f"--distillation.teacher.init_args.runs=[{self.runs[model.teacher]}]")

        def make(folder: Path) -> Step:
            told = tuple([*words, "--out", str(folder), "--resume"])
            outputs = tuple(folder / file for file in ("model.ckpt", "config.yaml", MANIFEST, "metrics.json"))
            return Step(f"train_{name}", told, inputs, outputs)

        folder = self.workshop.choose_folder(f"train_{name}", make, self.out / "runs" / name)
        self.trainings[name] = make(folder).command
        self.workshop.do(make(folder))
        return folder

    def _root(self, run: Path) -> Path:
        """Return the folder of the images. run: the first model's."""
        return run / PHANTOMS if self.plan.data.root == "phantom" else Path(self.plan.data.root)

    def _data(self) -> Path:
        root = self._root(next(iter(self.runs.values())))
        if not root.is_dir():
            raise StepFailed(f"{root} is not there; name the folder of the images with --data.root")
        return root

    def _export_and_measure(self, name: str, group: str, rows: Sequence[RowPlan]) -> None:
        """Make the files of some rows and measure each; what fails is noted, and its rows are not done."""
        self.workshop.begin(f"export {name} {group}")
        folder, reason = None, self.failed.get(name, "")
        if not reason:
            try:
                folder = self._export(name, group, rows)
            except StepFailed as failure:
                reason = str(failure)
                self._note(reason)
        for row in rows:
            self.workshop.begin(f"measure {row.id}")
            if folder is None:
                self.undone[row.id] = reason
                self.workshop.say("not done: there is no file")
                continue
            try:
                self._measure(row, folder)
            except StepFailed as failure:
                self.undone[row.id] = str(failure)
                self._note(str(failure))

    def _export(self, name: str, group: str, rows: Sequence[RowPlan]) -> Path:
        """Make the files of one group, or find them. Returns their folder."""
        model, run, recipes = self.plan.models[name], self.runs[name], [row.export for row in rows]
        folder = self.out / "exports" / name / group
        words = ["export", str(run), "--recipes", *recipes, *self.plan.export_arguments, "--out", str(folder)]
        words += ["--data", str(self._data()), "--force"]
        self.commands |= {row.id: [*self._trainings_behind(name), format_command(words)] for row in rows}
        if model.export:
            found, why = find_export(Path(model.export), run, recipes)
            if found:
                self.workshop.say(f"{model.export} has it")
                self.commands |= {row.id: self._trainings_behind(name) for row in rows}
                return Path(model.export)
            self.workshop.say(f"made here, because {why}")
        inputs = {f"run's {file}": hash_file(run / file) for file in ("model.ckpt", "config.yaml", MANIFEST)}
        inputs["arguments"] = repr([*recipes, *self.plan.export_arguments])
        files = ["parity.json", *(file for recipe in recipes for file in RECIPE_FILES[recipe] if file)]
        outputs = tuple(folder / file for file in files)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.workshop.do(Step(f"export_{name}_{group}", tuple(words), inputs, outputs, allowed=(0, FAILED)))
        return folder

    def _trainings_behind(self, name: str) -> list[str]:
        """Return the commands that trained a model and those that it comes from, in order."""
        model = self.plan.models[name]
        others = [] if model.run else [other for other in (model.init, model.teacher) if other]
        own = [self.trainings[name]] if name in self.trainings else []
        return [*(command for other in others for command in self._trainings_behind(other)), *own]

    def _measure(self, row: RowPlan, folder: Path) -> None:
        """Have a row's file answer every held-out image."""
        run, name, twin = self.runs[row.model], *RECIPE_FILES[row.export]
        file, predictions = folder / name, self.out / PREDICTIONS / f"{row.id}.npz"
        predictions.parent.mkdir(exist_ok=True)
        words = ["tools.predictions", str(file), "--run", str(run), "--data", str(self._data())]
        words += ["--out", str(predictions)]
        self.commands[row.id].append(format_command(words))
        inputs = {"file": hash_file(file), "splits": hash_file(run / MANIFEST), "images": hash_images(self._data())}
        self.workshop.do(Step(f"measure_{row.id}", tuple(words), inputs, (predictions,)))
        self.measured[row.id] = Measured(run, file, None if twin is None else folder / twin, folder, predictions)

    def _bench(self) -> dict[str, Path]:
        """Measure each family's latencies, its files taking turns. Returns row -> file."""
        latencies: dict[str, Path] = {}
        (self.out / LATENCY).mkdir(exist_ok=True)
        for family in dict.fromkeys(row.family for row in self.plan.wanted()):
            rows = [row for row in self.plan.rows if row.family == family and row.id in self.measured]
            self.workshop.begin(f"bench {family}")
            if not rows:
                self.workshop.say("not done: there are no files")
                continue
            try:
                latencies |= self._bench_family(family, rows, self.plan.latency)
            except StepFailed as failure:
                self._note(str(failure))
        return latencies

    def _bench_family(self, family: str, rows: Sequence[RowPlan], plan: LatencyPlan) -> dict[str, Path]:
        slug = "_".join("".join(letter if letter.isalnum() else " " for letter in family.lower()).split())
        target = self.out / LATENCY / f"bench_{slug}.json"
        files = [path for row in rows for path in self.measured[row.id].files]
        settings = ["--threads", str(plan.threads), "--rounds", str(plan.rounds), "--calls", str(plan.calls)]
        words = ["tools.bench", *map(str, files), *settings, "--json", str(target)]
        inputs = {f"{row.id} {path.name}": hash_file(path) for row in rows for path in self.measured[row.id].files}
        step = Step(f"bench_{slug}", tuple(words), {**inputs, "settings": " ".join(settings)}, (target,))
        self.workshop.do(step)
        for row in rows:
            self.commands[row.id].append(step.command)
        return split_latency(target, {row.id: self.measured[row.id] for row in rows}, self.out)

    def _draw_gradcam(self) -> str:
        """Draw what the row's model looks at. Returns the row, or nothing."""
        name = _gradcam_row(self.plan)
        if not name:
            return ""
        self.workshop.begin(f"gradcam {name}")
        if name not in self.measured:
            self.workshop.say(f"not done: there is no {name}")
            return ""
        run, target = self.measured[name].run, self.out / GRADCAM
        words = ("tools.gradcam", str(run), "--data", str(self._data()), "--out", str(target))
        inputs = {"run": hash_file(run / "model.ckpt"), "images": hash_images(self._data())}
        try:
            self.workshop.do(Step("gradcam", words, inputs, (target,)))
        except (StepFailed, ModuleNotFoundError) as failure:
            self._note(str(failure))
            return ""
        return name

    def _write_study(self, latencies: dict[str, Path], gradcam: str) -> None:
        """Write ``study.json``: the same bytes for the same rows."""
        rows = []
        for row in self.plan.rows:
            commands, float_row = (
                self.commands.get(row.id) or self._trainings_behind(row.model),
                self.plan.float_row(row.family),
            )
            if row.id in self.measured:
                found = describe_row(row, float_row, self.measured[row.id], latencies.get(row.id), commands, self.out)
                rows.append(found)
                if found["parity"] is not None and not found["parity"]["passed"]:
                    self.troubles.append(
                        f"row {row.id}: {self.measured[row.id].file} FAILED parity; it must not be used"
                    )
            else:
                reason = self.undone.get(row.id, "left out by --only")
                run = self.runs.get(row.model, Path(self.plan.models[row.model].run or self.out / "runs" / row.model))
                rows.append(describe_undone(row, float_row, run, reason, [*commands, self._command()], self.out))
        write_report(
            self.out / STUDY,
            {
                "format": 1,
                "title": self.plan.title,
                "created_from": {"commit": find_commit(), "config": self.plan.config},
                "data": describe_data(self._data(), self.measured) | {"differences": self.handling.differences},
                "classes": list(CLASSES),
                "rows": rows,
                "order": [row.id for row in self.plan.rows],
                "gradcam": {"row": gradcam, "file": GRADCAM} if gradcam else None,
            },
        )

    def _report(self) -> bool:
        files = [
            self.out / STUDY,
            *sorted((self.out / PREDICTIONS).glob("*.npz")),
            *sorted((self.out / LATENCY).glob("*")),
        ]
        files += [path for path in (self.out / GRADCAM,) if path.is_file()]
        self.workshop.begin("report")
        inputs = {path.name: hash_file(path) for path in files}
        outputs = (self.out / REPORT, self.out / REPORT_TWIN)
        try:
            self.workshop.do(Step("report", ("tools.report", str(self.out)), inputs, outputs))
        except (StepFailed, ModuleNotFoundError) as failure:
            self._note(str(failure))
            return False
        return True

    def _command(self) -> str:
        return format_command(["tools.study", "--config", self.plan.config, "--out", str(self.out)])

    def _note(self, trouble: str) -> None:
        """Say now, and again at the end, what could not be done."""
        self.workshop.say(f"not done: {trouble}")
        self.troubles.append(trouble)

    def _list_troubles(self) -> None:
        for trouble in self.troubles:
            print(f"  {trouble}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
