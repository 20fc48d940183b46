"""Runs a comparison: first the runs that choose rates, then those with all seeds."""

import contextlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from datasets import disable_progress_bars
from transformers.utils import logging

from ...training.finite_steps import NonFiniteStepError
from ...training.resuming.checkpoints import Record
from ...training.resuming.run_record import describe_differences
from ...whole_files import whole_file
from .arm_runs import ArmRun, ArmTrainer, Job
from .arms import Budget
from .plan import Plan, choosing_jobs, format_seconds, seed_jobs
from .result import ComparisonResult
from .settings import Comparison, name_of_test_file


def run_job(comparison: Comparison, job: Job, budget: Budget, is_chosen: bool) -> None:
    """Runs one job; its output is written to a log file.

    Args:
        comparison: settings that all jobs share.
        job: the job.
        budget: resources of the feedback arm.
        is_chosen: whether its rates are chosen; else it is not tested if others were better.
    """
    folder = runs_folder(comparison)
    others = [ArmRun.load(folder, replace(job, factor=factor)) for factor in comparison.rate_factors]
    to_beat = max((run.gain for run in others if run is not None), default=-math.inf)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{job.name}.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        trainer = ArmTrainer(comparison, job, budget)
        try:
            trainer.run(-math.inf if is_chosen else to_beat).save(folder)
        except NonFiniteStepError as error:
            if is_chosen:
                raise NonFiniteStepError(f"{job.name}: {error}") from error
            trainer.diverged(str(error)).save(folder)


def hide_progress_bars() -> None:
    """Hides the progress bars of loading and encoding, which would repeat in every run."""
    disable_progress_bars()
    logging.disable_progress_bar()


def runs_folder(comparison: Comparison) -> Path:
    """Returns the folder of the runs of a comparison."""
    return comparison.folder / "runs"


def _start_process(devices: "Queue[str]", num_threads: int) -> None:
    """Assigns a GPU, or a share of the cores, to a process."""
    if device := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(num_threads)
    hide_progress_bars()


class JobRunner:
    """Runs jobs, in this process or in several.

    Args:
        comparison: settings that they share.
        plan: their costs.
        num_processes: number of runs at a time; they take turns on the available GPUs.
    """

    def __init__(self, comparison: Comparison, plan: Plan, num_processes: int = 1) -> None:
        self.comparison, self.plan, self.num_processes = comparison, plan, num_processes
        self.started, self.finished_flops = time.monotonic(), 0.0

    def run(self, jobs: Sequence[Job], are_chosen: bool, later: Sequence[Job] = ()) -> list[ArmRun]:
        """Runs unfinished jobs, and returns the results of all.

        Args:
            jobs: the jobs to run.
            are_chosen: whether their rates are chosen, so that all are tested.
            later: jobs that follow, for the estimate of the remaining time.
        """
        folder = runs_folder(self.comparison)
        found = {job: ArmRun.load(folder, job) for job in jobs}
        open_jobs = [job for job, run in found.items() if run is None or (are_chosen and not run.examples)]
        self.failures: list[NonFiniteStepError] = []
        for number, job in enumerate(self._finish(open_jobs, are_chosen), 1):
            self.finished_flops += self.plan.costs[job.arm].total
            left = [*open_jobs[number:], *(job for job in later if not self._is_finished(job))]
            run = ArmRun.load(folder, job)
            ending = "done" if run is not None and run.divergence is None else "diverged"
            print(f"{job.name}: {ending}, {self._time_left(left)} for {len(left)} more runs", flush=True)
        if self.failures:
            raise NonFiniteStepError(
                f"{'; '.join(map(str, self.failures))} All other runs are finished: leave out the arm (`--arms`, "
                "`--variants`) or the seed (`--seeds`) to see them, or give smaller rates and another folder."
            )
        runs = [ArmRun.load(folder, job) for job in jobs]
        return [run for run in runs if run is not None]

    def _is_finished(self, job: Job) -> bool:
        """Whether the arm has a run of that seed, whatever rates it will choose or has chosen."""
        jobs = (replace(job, factor=factor) for factor in self.comparison.rate_factors)
        return any(ArmRun.load(runs_folder(self.comparison), one) is not None for one in jobs)

    def _finish(self, jobs: Sequence[Job], are_chosen: bool) -> Iterator[Job]:
        """Runs jobs; yields each when it is done."""
        if self.num_processes == 1 or len(jobs) < 2:
            for job in jobs:
                with self._failing_later():
                    run_job(self.comparison, job, self.plan.budget_of(job.arm), are_chosen)
                yield job
            return
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        num_gpus = torch.cuda.device_count() if not self.comparison.args.use_cpu else 0
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == num_gpus else [str(i) for i in range(num_gpus)]
        for i in range(self.num_processes):
            devices.put(names[i % num_gpus] if num_gpus else "")
        num_threads = max(1, (os.cpu_count() or 1) // self.num_processes)
        with ProcessPoolExecutor(self.num_processes, context, _start_process, (devices, num_threads)) as pool:
            running = {
                pool.submit(run_job, self.comparison, job, self.plan.budget_of(job.arm), are_chosen): job
                for job in jobs
            }
            try:
                for future in as_completed(running):
                    with self._failing_later():
                        future.result()
                    yield running[future]
            except BrokenProcessPool as error:
                raise ValueError(
                    f"`processes`: the system ended one of {self.num_processes} processes, usually because memory ran "
                    "out. The same command goes on after the finished runs; give fewer --processes or smaller batches."
                ) from error
            except BaseException:
                processes = list((pool._processes or {}).values())
                pool.shutdown(wait=False, cancel_futures=True)
                # Running jobs cannot be cancelled; their files are written completely or not at all.
                for process in processes:
                    process.terminate()
                raise

    @contextlib.contextmanager
    def _failing_later(self) -> Iterator[None]:
        """Context in which a run may diverge whose rates are chosen: the others are run first."""
        try:
            yield
        except NonFiniteStepError as error:
            self.failures.append(error)

    def _time_left(self, jobs: Sequence[Job]) -> str:
        flops = sum(self.plan.costs[job.arm].total for job in jobs)
        return format_seconds((time.monotonic() - self.started) * flops / max(self.finished_flops, 1.0))


def choose_factors(runs: Sequence[ArmRun]) -> dict[str, float]:
    """Returns the factor on the rates that is best on validation, for each arm; of equal ones the smallest."""
    by_factor = sorted(runs, key=lambda run: run.job.factor)
    return {
        arm: max((run for run in by_factor if run.job.arm == arm), key=lambda run: run.gain).job.factor
        for arm in dict.fromkeys(run.job.arm for run in runs)
    }


def compare(comparison: Comparison, plan: Plan, num_processes: int = 1) -> ComparisonResult:
    """Trains all arms and returns the results; finished runs of an earlier call are not repeated.

    Args:
        comparison: the comparison.
        plan: from `make_plan`.
        num_processes: number of runs at a time.

    Raises:
        ValueError: the folder holds runs of another comparison.
    """
    claim_folder(comparison, plan)
    arms = list(plan.costs)
    runner = JobRunner(comparison, plan, num_processes)
    choosing = choosing_jobs(comparison, arms)
    later = seed_jobs(comparison, dict.fromkeys(arms, comparison.rate_factors[0]))
    runs = runner.run(choosing, are_chosen=False, later=later)
    chosen = choose_factors(runs)
    first = [run.job for run in runs if run.job.factor == chosen[run.job.arm]]
    tested = runner.run([*first, *seed_jobs(comparison, chosen)], are_chosen=True)
    return ComparisonResult(comparison, plan, runs, tested)


def claim_folder(comparison: Comparison, plan: Plan) -> None:
    """Records in the output folder the settings that its runs depend on.

    Raises:
        ValueError: the folder holds runs of another comparison.
    """
    file = comparison.folder / "settings.json"
    args, budgets = comparison.model_args, {name: plan.budget_of(name) for name in comparison.arms}
    model = {f"--{name}": value for name, value in vars(args).items() if name not in ("model", "revision")}
    arms = {
        f"arm {name}": [dict(arm.model_options()), arm.training_factor(budgets[name]), asdict(budgets[name])]
        for name, arm in comparison.arms.items()
    }
    settings = {name: value for name, value in plan.record.items() if name != "seed"}
    now: Record = {**settings, **model, **arms, "also_test": [name_of_test_file(file) for file in comparison.also_test]}
    now["most_steps"] = comparison.most_steps
    now = json.loads(json.dumps(now))  # as the file has it: lists in the place of tuples
    before = _read_settings(file) if file.is_file() else {}
    if differences := describe_differences(before, now):
        raise ValueError(
            f"`output_dir`: {comparison.folder} holds runs of another comparison, where "
            f"{'; '.join(differences.values())}. Use another folder."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        partial.write_text(json.dumps({**before, **now}, indent=1), encoding="utf-8")


def _read_settings(file: Path) -> Record:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`output_dir`: {file} cannot be read ({error}). Use another folder.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"`output_dir`: {file} holds no settings of a comparison. Use another folder.")
    if "also_test" in settings:  # once paths, whose contents are compared as the rows of each
        settings["also_test"] = [name_of_test_file(file) for file in settings["also_test"]]
    return settings
