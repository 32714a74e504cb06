"""A study of training: variants of train.py, each with several seeds, judged by evaluate.py.

Every variant is trained for the same number of steps, and once more for as many steps as fit into
the time of the first variant, the reference. The scripts are called as a user calls them.
"""
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import CPU_CORES
from utils.progress import progress

ROOT = Path(__file__).resolve().parent.parent
SPEED_STEPS = 12            # of a run that measures speed, the first of which warm up
WARM_UP_STEPS = 2
SAME_STEPS = 0.03           # relative difference of steps that is not worth another run
KEYS = ("mmd_linear", "ms_ssim", "through_plane")   # of metrics.json

_running = set()            # processes of the scripts that run now


@dataclass(frozen=True)
class Study:
    """What is compared, and on what task.

    :param variants: {name: list of flags of train.py}; the first is the reference
    :param data_path: data folder; trained on its train split, judged by its test split
    :param train_flags: flags of train.py that all variants share
    :param sample_flags: flags of sample.py
    :param steps: of training at equal steps
    :param seeds: number of seeds, 0, 1, …
    :param jobs: runs that are computed at the same time, each with its share of the cores
    :param turns: runs of each variant, alternating and one at a time, that measure its speed
    :param output: Path of the folder of all runs; what is there already is not computed again
    """
    variants: dict
    data_path: Path
    train_flags: list
    sample_flags: list
    steps: int
    seeds: int
    jobs: int
    turns: int
    output: Path


@dataclass(frozen=True)
class Outcome:
    """One trained model."""
    variant: str
    seed: int
    steps: int
    trainable: int          # values
    numbers: dict           # {key of KEYS: value}
    targets: dict           # {key: the same number of the real volumes}, where it has one


def parse_variants(texts):
    """{name: list of flags} from texts such as "lora 8: --tune lora --lora-rank 8".

    :raises UserError: not of this form, or a name twice
    """
    variants = {}
    for text in texts:
        name, colon, flags = text.partition(":")
        name = name.strip()
        if not colon or not re.fullmatch(r"[\w+., -]+", name):
            raise UserError(f"--variant {text!r}: must be a name of letters, digits and + . , -, "
                            "a colon, and flags of train.py")
        if name in variants:
            raise UserError(f"--variant {text!r}: there is another of this name")
        variants[name] = split_flags("--variant", flags)
    return variants


def split_flags(flag, text):
    """Flags as a shell would split them.

    :raises UserError: an unclosed quote
    """
    try:
        return shlex.split(text)
    except ValueError as e:
        raise UserError(f"{flag} {text!r}: {e}") from None


def run(study):
    """Computes all runs that are not there yet.

    :return: {variant: seconds per step}, Outcomes at equal steps, Outcomes at equal time
    :raises UserError: a script failed, with its last line; the folder is of another task
    """
    claim_folder(study)
    seconds = step_seconds(study)
    plan = [(name, seed, study.steps) for seed in range(study.seeds) for name in study.variants]
    equal_steps = _compute(study, plan, "equal steps")
    steps = steps_of_equal_time(study.steps, seconds)
    plan = [(name, seed, steps[name]) for seed in range(study.seeds) for name in study.variants]
    return seconds, equal_steps, _compute(study, plan, "equal time")


def claim_folder(study):
    """Records the task of a study in its folder; variants, seeds and steps may be added later.

    :raises UserError: the folder is of another task, or its variant of this name has other flags
    """
    path = study.output / "task.json"
    task = {"data_path": str(study.data_path), "train_flags": study.train_flags,
            "sample_flags": study.sample_flags, "variants": study.variants}
    old = read_json(path) if path.is_file() else task
    for key in ("data_path", "train_flags", "sample_flags"):
        if old[key] != task[key]:
            raise UserError(f"--output {study.output}: holds a study with another "
                            f"--{key.replace('_', '-')}; use another folder")
    for name, flags in study.variants.items():
        if old["variants"].get(name, flags) != flags:
            raise UserError(f"--variant {name}: {study.output} holds runs of this name with other "
                            "flags; use another name")
    study.output.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**task, "variants": {**old["variants"], **study.variants}}) + "\n")


def steps_of_equal_time(steps, seconds):
    """{variant: steps that take as long as `steps` of the first}.

    :param seconds: {variant: seconds per step}
    """
    reference = next(iter(seconds.values()))
    found = {name: round(steps * reference / own) for name, own in seconds.items()}
    return {name: steps if abs(count / steps - 1) < SAME_STEPS else count
            for name, count in found.items()}


# --------------------------------------------------------------------------------------- speed

def step_seconds(study):
    """{variant: median seconds per step} of short runs that alternate."""
    plan = [(name, turn) for turn in range(study.turns) for name in study.variants]
    found = {name: [] for name in study.variants}
    for name, turn in progress(plan, "speed"):
        found[name] += _seconds_of_short_run(study, name, turn)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _seconds_of_short_run(study, variant, turn):
    """Seconds of each step of a run of a few steps, without those that warm up."""
    results = study.output / "speed" / folder_name(variant) / f"turn-{turn}"
    _call(CPU_CORES, "train.py", "--data-path", study.data_path, "--max-steps", SPEED_STEPS,
          "--ckpt-every", SPEED_STEPS, "--log-every", 1, "--results-dir", results,
          *study.train_flags, *study.variants[variant],
          "--full-steps", 0)    # there is no room for them: the last of two flags holds
    (run_folder,) = results.iterdir()
    speeds = re.findall(r"([\d.e+-]+) steps/s", (run_folder / "log.txt").read_text())
    return [1 / float(speed) for speed in speeds[WARM_UP_STEPS:]]


def folder_name(variant):
    return variant.replace(" ", "-")


# ------------------------------------------------------------------------------------- one run

def _compute(study, plan, description):
    """The outcomes of a list of (variant, seed, steps)."""
    with ThreadPoolExecutor(study.jobs) as pool:
        tasks = [pool.submit(_outcome, study, *planned) for planned in plan]
        try:
            for task in progress(as_completed(tasks), description, total=len(tasks)):
                task.result()                   # raises what it raised
            return [task.result() for task in tasks]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end_scripts_of(tasks)      # or this process would wait for their ends
            raise


def _end_scripts_of(tasks):
    """Ends what tasks run, also what they start meanwhile, until none of them is left."""
    asked = set()
    while not all(task.done() for task in tasks):
        for process in _running - asked:
            process.terminate()
            asked.add(process)
        time.sleep(0.1)


def _outcome(study, variant, seed, steps):
    """Trains, samples and evaluates, as far as that is not done already."""
    folder = study.output / folder_name(variant) / f"seed-{seed}" / f"steps-{steps}"
    threads = max(1, CPU_CORES // study.jobs)
    _call(threads, "train.py", "--data-path", study.data_path, "--max-steps", steps,
          "--ckpt-every", steps, "--global-seed", seed,
          "--results-dir", folder / "results", *study.train_flags, *study.variants[variant])
    (run_folder,) = (folder / "results").iterdir()
    _call(threads, "sample.py", "--ckpt", run_folder, "--seed", seed,
          "--output", folder / "samples", *study.sample_flags)
    _call(threads, "evaluate.py", "--real", study.data_path, "--synthetic", folder / "samples",
          "--metrics", "ms-ssim", "mmd", "smoothness", "--bootstrap", 0, "--permutations", 0,
          "--update", "--output", folder / "evaluation")
    found = json.loads((folder / "evaluation" / "metrics.json").read_text())["metrics"]
    log = (run_folder / "log.txt").read_text()
    return Outcome(
        variant, seed, steps,
        trainable=_trainable_parameters(log),
        numbers={key: found[key]["value"] for key in KEYS},
        targets={key: found[key]["target"]["value"] for key in KEYS if "target" in found[key]})


def _trainable_parameters(log):
    """Their number, from a run's log.txt; versions up to 0.8.0 called them values."""
    count = re.search(r"([\d,]+) trainable (?:parameters|values)", log)[1]
    return int(count.replace(",", ""))


def _call(threads, script, *flags):
    """Runs a script of this repository.

    :param threads: of PyTorch
    :raises UserError: it failed
    """
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment) as process:
        _running.add(process)
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()
            raise
        finally:
            _running.discard(process)
    if process.returncode:
        last = (errors.strip() or output.strip() or "no output").splitlines()[-1]
        raise UserError(f"{script} {' '.join(map(str, flags))}: exit code {process.returncode}; "
                        f"{last}")
