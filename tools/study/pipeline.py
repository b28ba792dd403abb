"""One pass over a study's plan: train, export, measure, compare, report. What is there already is not made again."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from brainq_torch.data.dataset.label_table import split_table
from brainq_torch.data.dataset.manifest import class_names, read_manifest
from brainq_torch.provenance import find_commit, is_dirty
from brainq_torch.run_files import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    PARITY,
    PHANTOMS,
    find_config,
    format_command,
    hash_file,
    write_json,
)
from export.catalogue import CATALOGUE
from tools.shared.study_schema import FORMAT, LATENCY, PREDICTIONS, STUDY, CreatedFrom, GradCam, StudyFile
from tools.study.config import RowPlan, StudyPlan
from tools.study.runner import FAILED, RUN_FILES, Step, StepFailed, StepRunner
from tools.study.runs import (
    Handling,
    check_finished,
    check_images,
    compare_handling,
    find_lacking,
    hash_images,
    read_handling,
)
from tools.study.states import ModelState, RowState
from tools.study.table import describe_images, describe_row, split_latency

REPORT, REPORT_TWIN, GRADCAM = "report.html", "report.md", "gradcam.png"


def run_study(plan: StudyPlan) -> int:
    """Make what the plan names and is not there yet."""
    check_images(plan)
    runner = StepRunner(plan.out, count_steps(plan))
    if is_dirty():
        runner.say("the code has changes that are not committed; a step is not done again for further ones")
    with runner.locked():
        return _Study(plan, runner).run()


def count_steps(plan: StudyPlan) -> int:
    """Return how many steps the progress counts."""
    rows = plan.wanted()
    trained = sum(not plan.models[name].run for name in plan.needed_models())
    exports = {(row.model, row.export_group) for row in rows}
    families = {row.family for row in rows} if plan.latency.rounds else set()
    gradcam = plan.gradcam in {row.id for row in rows}
    return trained + len(exports) + len(rows) + len(families) + gradcam + 1


class _Study:
    """The state of one pass.

    first: what the first model saw. differences: how the others' handling of images differs from it.
    failures: everything that could not be done.
    """

    def __init__(self, plan: StudyPlan, runner: StepRunner) -> None:
        self.plan, self.out, self.runner = plan, plan.out, runner
        self.models = {
            name: ModelState(model, Path(model.run or plan.out / "runs" / name)) for name, model in plan.models.items()
        }
        self.rows = {
            row.id: RowState(
                row, self.models[row.model], plan.float_row(row.family), plan.out / PREDICTIONS / f"{row.id}.npz"
            )
            for row in plan.rows
        }
        self.first: Handling | None = None
        self.differences: list[str] = []
        self.failures: list[str] = []
        self.gradcam: GradCam | None = None
        for folder in (PREDICTIONS, LATENCY):
            (plan.out / folder).mkdir(exist_ok=True)

    def run(self) -> int:
        """Do every step. Returns the exit code."""
        wanted = self.plan.wanted()
        for name in self.plan.needed_models():
            self.models[name].reason = self._attempt(self._obtain, name)
            rows = [row for row in wanted if row.model == name]
            for group in dict.fromkeys(row.export_group for row in rows):
                self._export_and_measure(name, group, [row for row in rows if row.export_group == group])
        for family in dict.fromkeys(row.family for row in wanted) if self.plan.latency.rounds else ():
            self.runner.begin(f"bench {family}")
            self._attempt(self._bench, family)
        if self.plan.gradcam in {row.id for row in wanted}:
            self.runner.begin(f"gradcam {self.plan.gradcam}")
            self._attempt(self._draw_gradcam, self.rows[self.plan.gradcam])
        reported = any(state.done for state in self.rows.values())
        if reported:
            self._write_study()
            self.runner.begin("report")
            reported = not self._attempt(self._report)
        for failure in self.failures:
            print(f"  {failure}", flush=True)
        print(f"report: {self.out / REPORT}" if reported else "there is no report", flush=True)
        return FAILED if self.failures else 0

    def _attempt(self, action: Callable[..., None], *arguments: object) -> str:
        """Do something; say now, and again at the end, why it could not be done. Returns the reason, or nothing."""
        try:
            action(*arguments)
        except StepFailed as failure:
            self.runner.say(f"not done: {failure}")
            self.failures.append(str(failure))
            return str(failure)
        return ""

    def _obtain(self, name: str) -> None:
        """Find or train a model's run, and check that it learned from the same images as the others."""
        state = self.models[name]
        if not state.plan.run:
            self.runner.begin(f"train {name}")
            self._train(name, state)
        check_finished(state.run)
        handling = read_handling(name, state.run)
        self.first = self.first or handling
        for difference in compare_handling(self.first, handling):
            self.runner.say(f"warning: {difference}")
            self.differences.append(difference)
        state.ready = True

    def _train(self, name: str, state: ModelState) -> None:
        """Train a model, or go on where it was killed."""
        words, inputs = self._describe_training(state)
        state.run = self.runner.choose_folder(f"train_{name}", self.out / "runs" / name, inputs)
        outputs = tuple(state.run / file for file in RUN_FILES)
        step = Step(f"train_{name}", (*words, "--out", str(state.run), "--resume"), inputs, outputs)
        state.command = step.command
        self.runner.do(step)

    def _describe_training(self, state: ModelState) -> tuple[list[str], dict[str, str]]:
        """Return a training's words but for its folder, and what it depends on."""
        model = state.plan
        for parent in model.parents:
            if not self.models[parent].ready:
                raise StepFailed(f"{parent}, which it needs, is not there: {self.models[parent].reason}")
        arguments = [*self.plan.fit_arguments, *model.arguments]
        words = ["brainq_torch.fit", "--config", model.config, *arguments]
        inputs = {"configuration": hash_file(find_config(model.config)), "arguments": repr(arguments)}
        first = self._first_run()
        words += ["--data.root", str(self._root())]
        if first is None:
            inputs["images"] = hash_images(self.plan.data.root)
        else:  # the same images in the same parts for all
            inputs["splits"] = hash_file(first / MANIFEST)
            words += ["--data.manifest", str(first / MANIFEST)]
        if model.init:
            run = self.models[model.init].run
            inputs["init"] = hash_file(run / CHECKPOINT)
            words += ["--init", str(run)]
        if model.teachers:
            runs = [self.models[teacher].run for teacher in model.teachers]
            inputs["teacher"] = " ".join(hash_file(run / CHECKPOINT) for run in runs)
            words.append(f"--distillation.teacher.init_args.runs=[{','.join(map(str, runs))}]")
        return words, inputs

    def _trainings_behind(self, state: ModelState) -> list[str]:
        """Return the commands that trained a model and those that it comes from, in order."""
        parents = [self.models[name] for name in state.plan.parents]
        own = [state.command] if state.command else []
        return [*(command for parent in parents for command in self._trainings_behind(parent)), *own]

    def _first_run(self) -> Path | None:
        return next((state.run for state in self.models.values() if state.ready), None)

    def _root(self) -> Path:
        """Return the folder of the images; phantoms are in the first run."""
        first = self._first_run()
        return first / PHANTOMS if first and self.plan.data.root == "phantom" else Path(self.plan.data.root)

    def _data(self) -> Path:
        root = self._root()
        if not root.is_dir():
            raise StepFailed(f"{root} is not there; name the folder of the images with --data.root")
        return root

    def _export_and_measure(self, name: str, group: str, rows: Sequence[RowPlan]) -> None:
        """Make the files of some rows and measure each; what fails is noted, and its rows are not done."""
        self.runner.begin(f"export {name} {group}")
        reason = self.models[name].reason or self._attempt(self._export, name, group, rows)
        for row in rows:
            self.runner.begin(f"measure {row.id}")
            if reason:
                self.runner.say("not done: there is no file")
            self.rows[row.id].reason = reason or self._attempt(self._measure, self.rows[row.id])

    def _export(self, name: str, group: str, rows: Sequence[RowPlan]) -> None:
        """Make the files of one group, or find them."""
        model, recipes, states = self.models[name], [row.export for row in rows], [self.rows[row.id] for row in rows]
        folder = self.out / "exports" / name / group
        for state in states:
            state.export, state.commands = folder, self._trainings_behind(model)
        if model.plan.export:
            given = Path(model.plan.export)
            lacking = find_lacking(given, model.run, recipes)
            self.runner.say(f"made here, because {lacking}" if lacking else f"{given} has it")
            if not lacking:
                for state in states:
                    state.export = given
                return
        words = ["export", str(model.run), "--recipes", *recipes, *self.plan.export_arguments, "--out", str(folder)]
        words += ["--data", str(self._data()), "--force"]
        inputs = {f"run's {file}": hash_file(model.run / file) for file in (CHECKPOINT, CONFIG, MANIFEST)}
        inputs["arguments"] = repr([*recipes, *self.plan.export_arguments])
        files = [PARITY, *(file for recipe in recipes for file in CATALOGUE[recipe].files)]
        outputs = tuple(folder / file for file in files)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._do(Step(f"export_{name}_{group}", tuple(words), inputs, outputs, allowed=(0, FAILED)), states)

    def _measure(self, state: RowState) -> None:
        """Have a row's file classify every held-out image."""
        run, data = state.model.run, self._data()
        words = ["tools.predictions", str(state.file), "--run", str(run), "--data", str(data)]
        words += ["--out", str(state.predictions)]
        inputs = {"file": hash_file(state.file), "splits": hash_file(run / MANIFEST), "images": hash_images(data)}
        if self.plan.data.elsewhere:
            words += ["--elsewhere", *self.plan.data.elsewhere]
            inputs["elsewhere"] = " ".join(hash_images(split_table(Path(one))[0]) for one in self.plan.data.elsewhere)
        self._do(Step(f"measure_{state.plan.id}", tuple(words), inputs, (state.predictions,)), [state])
        state.done = True

    def _bench(self, family: str) -> None:
        """Measure the latencies of a family's files, which take turns."""
        states = [state for state in self.rows.values() if state.plan.family == family and state.done]
        if not states:
            self.runner.say("not done: there are no files")
            return
        slug = "_".join("".join(letter if letter.isalnum() else " " for letter in family.lower()).split())
        target, plan = self.out / LATENCY / f"bench_{slug}.json", self.plan.latency
        settings = ["--threads", str(plan.threads), "--rounds", str(plan.rounds), "--calls", str(plan.calls)]
        files = [str(path) for state in states for path in state.files]
        words = ["tools.bench", *files, *settings, "--json", str(target)]
        inputs = {f"{state.plan.id} {path.name}": hash_file(path) for state in states for path in state.files}
        self._do(Step(f"bench_{slug}", tuple(words), {**inputs, "settings": " ".join(settings)}, (target,)), states)
        split_latency(target, states, self.out)

    def _do(self, step: Step, states: Sequence[RowState]) -> None:
        """Do a step of some rows, which name its command."""
        for state in states:
            state.commands = [*state.commands, step.command]
        self.runner.do(step)

    def _draw_gradcam(self, state: RowState) -> None:
        """Draw what the row's model looks at."""
        if not state.done:
            self.runner.say(f"not done: there is no {state.plan.id}")
            return
        run, target, data = state.model.run, self.out / GRADCAM, self._data()
        words = ["tools.gradcam", str(run), "--data", str(data)]
        words += ["--manifest", str(run / MANIFEST), "--out", str(target)]
        inputs = {"run": hash_file(run / CHECKPOINT), "images": hash_images(data)}
        self.runner.do(Step("gradcam", tuple(words), inputs, (target,)))
        self.gradcam = GradCam(state.plan.id, GRADCAM)

    def _write_study(self) -> None:
        """Write ``study.json``: the same bytes for the same rows."""
        again = format_command("tools.study", "--config", self.plan.config, "--out", self.out)
        for state in self.rows.values():
            if not state.done:
                state.commands = [*(state.commands or self._trainings_behind(state.model)), again]
        rows = tuple(describe_row(state, self.out) for state in self.rows.values())
        failed = [row for row in rows if row.parity is not None and not row.parity.passed]
        self.failures += [f"row {row.id}: {row.file} FAILED parity; it must not be used" for row in failed]
        done = [state for state in self.rows.values() if state.done]
        study = StudyFile(
            format=FORMAT,
            title=self.plan.title,
            created_from=CreatedFrom(find_commit(), self.plan.config, is_dirty()),
            data=describe_images(self._data(), done, self.differences),
            classes=class_names(read_manifest(done[0].model.run / MANIFEST)),
            rows=rows,
            order=tuple(self.rows),
            gradcam=self.gradcam,
        )
        write_json(self.out / STUDY, asdict(study))

    def _report(self) -> None:
        """Have the report written of what the study folder holds."""
        files = [self.out / STUDY, *sorted((self.out / PREDICTIONS).glob("*.npz"))]
        files += [*sorted((self.out / LATENCY).glob("*")), *self.out.glob(GRADCAM)]
        inputs = {path.name: hash_file(path) for path in files}
        outputs = (self.out / REPORT, self.out / REPORT_TWIN)
        self.runner.do(Step("report", ("tools.report", str(self.out)), inputs, outputs))
